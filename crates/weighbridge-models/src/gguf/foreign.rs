//! What a file is that is not a GGUF file: what users really have when a path is wrong.

use crate::safetensors::pickle_kind;

/// A file's kind by its first bytes, and what to do about it; `None` for a GGUF file of a byte
/// order and format that this reader knows.
pub(super) fn recognise(start: &[u8]) -> Option<(String, &'static str)> {
    let found = |what: &str, remedy| Some((what.to_owned(), remedy));
    let text = start.trim_ascii_start();
    let is_html = [&b"<!doctype html"[..], b"<html", b"<?xml"]
        .iter()
        .any(|tag| text.get(..tag.len()).is_some_and(|head| head.eq_ignore_ascii_case(tag)));
    match start {
        [b'G', b'G', b'U', b'F', ..] => None,
        [b'F', b'U', b'G', b'G', ..] => {
            found("is a byte-swapped (big-endian) GGUF file", "download the little-endian file")
        }
        [b'l' | b'f', b'm', b'g', b'g', ..] | [b't', b'j', b'g', b'g', ..] => {
            found("is a model in a format from before GGUF", "download a current conversion")
        }
        [] => found("is empty", "download it again"),
        _ if start.starts_with(b"version https://git-lfs") => found(
            "is a git-lfs pointer, not the model itself",
            "run `git lfs pull` in its repository, or download the file",
        ),
        _ if is_html => found(
            "is a web page, not a model",
            "download the file itself; a login or a licence may have to be accepted first",
        ),
        [_, _, _, _, 0, 0, 0, 0, b'{', ..] => found(
            "is a safetensors file",
            "give its folder to an engine for safetensors, or the path of a GGUF file",
        ),
        _ => match pickle_kind(start) {
            Some(what) => Some((
                format!("is {what} not a GGUF file"),
                "convert it with `convert_hf_to_gguf.py` of llama.cpp",
            )),
            None => Some((
                format!(
                    "is not a GGUF file: it starts with `{}`, not with `GGUF`",
                    start.get(..4).unwrap_or(start).escape_ascii()
                ),
                "is it the right file?",
            )),
        },
    }
}
