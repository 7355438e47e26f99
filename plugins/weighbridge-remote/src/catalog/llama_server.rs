//! llama.cpp's server: `GET /v1/models` and `GET /props`.

use serde_json::Value;

use super::{count, text};
use crate::wire::Listed;

pub(super) fn listed(model: &Value) -> Option<Listed> {
    let mut listed = Listed::new(text(&model["id"])?);
    let meta = &model["meta"];
    listed.n_ctx = count(&meta["n_ctx"]);
    listed.n_params = meta["n_params"].as_u64().filter(|&n| n > 0);
    listed.quantization = text(&meta["ftype"]);
    Some(listed)
}

pub(super) fn add_details(listed: &mut Listed, answer: &Value) {
    // Of one slot, which is what one call can use.
    listed.n_ctx = count(&answer["default_generation_settings"]["n_ctx"]).or(listed.n_ctx);
    listed.quantization = text(&answer["model_ftype"]).or(listed.quantization.take());
    listed.has_weights = text(&answer["model_path"]).is_some();
    listed.takes_images = answer["modalities"]["vision"].as_bool();
    listed.engine = text(&answer["build_info"]).map(|build| ("llama.cpp".to_owned(), build));
}

#[cfg(test)]
mod tests {
    use crate::catalog::Catalog;
    use serde_json::json;

    #[test]
    fn the_list_and_the_details() {
        let document = json!({"object": "list", "models": [{"name": "m.gguf"}], "data": [
            {"id": "m.gguf", "object": "model", "owned_by": "llamacpp", "aliases": [], "meta":
                {"vocab_type": 2, "n_vocab": 512, "n_ctx": 512, "n_ctx_train": 2048, "n_embd": 64,
                 "n_params": 136_512, "size": 273_024, "ftype": "F16"}}]});
        let mut listed = Catalog::LlamaServer.models(&document).unwrap().models.remove(0);
        let props = json!({"default_generation_settings": {"params": {}, "n_ctx": 256},
            "total_slots": 2, "model_alias": "m.gguf", "model_path": "/models/m.gguf",
            "model_ftype": "F16", "modalities": {"vision": false, "audio": false},
            "build_info": "b6800-cafe"});
        Catalog::LlamaServer.add_details(&mut listed, &props);
        insta::assert_debug_snapshot!("llama_server", listed);
    }
}
