//! LM Studio: `GET /api/v0/models`.

use serde_json::Value;

use super::{count, text};
use crate::wire::Listed;

pub(super) fn listed(model: &Value) -> Option<Listed> {
    let mut listed = Listed::new(text(&model["id"])?);
    listed.quantization = text(&model["quantization"]);
    listed.n_ctx = count(&model["max_context_length"]);
    listed.takes_images = model["type"].as_str().map(|kind| kind == "vlm");
    Some(listed)
}

#[cfg(test)]
mod tests {
    use crate::catalog::Catalog;
    use serde_json::json;

    #[test]
    fn the_list() {
        let document = json!({"object": "list", "data": [
            {"id": "qwen2-vl-7b-instruct", "object": "model", "type": "vlm",
             "publisher": "mlx-community", "arch": "qwen2_vl", "compatibility_type": "mlx",
             "quantization": "4bit", "state": "not-loaded", "max_context_length": 32768},
            {"id": "llama-3.1-8b", "object": "model", "type": "llm", "arch": "llama",
             "compatibility_type": "gguf", "quantization": "Q4_K_M", "state": "loaded",
             "max_context_length": 131_072},
        ]});
        insta::assert_debug_snapshot!("lm_studio_list", Catalog::LmStudio.models(&document));
    }
}
