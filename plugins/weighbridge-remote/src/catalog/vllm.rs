//! vLLM: `GET /v1/models`.

use serde_json::Value;

use super::{count, text};
use crate::wire::Listed;

pub(super) fn listed(model: &Value) -> Option<Listed> {
    let mut listed = Listed::new(text(&model["id"])?);
    listed.n_ctx = count(&model["max_model_len"]);
    Some(listed)
}

#[cfg(test)]
mod tests {
    use crate::catalog::Catalog;
    use serde_json::json;

    #[test]
    fn the_list() {
        let document = json!({"object": "list", "data": [
            {"id": "Qwen/Qwen3-8B", "object": "model", "created": 1, "owned_by": "vllm",
             "root": "Qwen/Qwen3-8B", "parent": null, "max_model_len": 40960, "permission": []},
            {"id": "my-lora", "object": "model", "created": 1, "owned_by": "vllm",
             "root": "/loras/my", "parent": "Qwen/Qwen3-8B", "permission": []},
        ]});
        let models = Catalog::Vllm.models(&document).unwrap().models;
        let told: Vec<_> = models.iter().map(|m| (m.id.as_str(), m.n_ctx)).collect();
        assert_eq!(told, [("Qwen/Qwen3-8B", Some(40960)), ("my-lora", None)]);
    }
}
