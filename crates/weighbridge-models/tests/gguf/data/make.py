"""Writes the files of this folder with gguf-py 0.19 (`pip install gguf numpy`)."""

import pathlib

import gguf
import numpy as np

HERE = pathlib.Path(__file__).parent
TOKENS = [b"<unk>", b"<s>", b"</s>", b"\xff\xfe", "é".encode(), b"<0x0A>"]


def fill(writer: gguf.GGUFWriter) -> None:
    writer.add_name("Value Types")
    writer.add_license("mit")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_head_count([4, 2])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0, -1.0, -2.0, -3.5, -4.0, -5.0])
    writer.add_token_types([2, 3, 3, 1, 1, 6])
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_uint8("t.u8", 255)
    writer.add_int8("t.i8", -128)
    writer.add_uint16("t.u16", 65535)
    writer.add_int16("t.i16", -32768)
    writer.add_uint32("t.u32", 2**32 - 1)
    writer.add_int32("t.i32", -(2**31))
    writer.add_uint64("t.u64", 2**64 - 1)
    writer.add_int64("t.i64", -(2**63))
    writer.add_float32("t.f32", 0.1)
    writer.add_float64("t.f64", 0.1)
    writer.add_bool("t.true", True)
    writer.add_bool("t.false", False)
    writer.add_string("t.str", "größer")
    writer.add_array("t.ints", [-1, 0, 2**31 - 1])
    writer.add_array("t.floats", [0.5, -0.25])
    writer.add_array("t.bools", [True, False, True])
    writer.add_array("t.strs", ["", "x"])
    embedding = np.arange(6 * 32, dtype=np.float32).reshape(6, 32)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("half", np.arange(5, dtype=np.float16))
    quantized = gguf.quants.quantize(embedding, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("quantized", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("last", np.array([7, 8, 9], dtype=np.int32))


def write(name: str, **options: int) -> None:
    writer = gguf.GGUFWriter(HERE / name, "llama", **options)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


write("types.gguf")
write("split.gguf", split_max_tensors=2)
