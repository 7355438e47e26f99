//! OpenRouter: `GET /api/v1/models`. Its prices are not taken for prices.

use serde_json::Value;

use super::{count, text};
use crate::wire::Listed;

pub(super) fn listed(model: &Value) -> Option<Listed> {
    let mut listed = Listed::new(text(&model["id"])?);
    listed.n_ctx = count(&model["context_length"]);
    let inputs = model["architecture"]["input_modalities"].as_array();
    listed.takes_images = inputs.map(|inputs| inputs.iter().any(|input| input == "image"));
    Some(listed)
}

#[cfg(test)]
mod tests {
    use crate::catalog::Catalog;
    use serde_json::json;

    #[test]
    fn the_list() {
        let document = json!({"data": [{"id": "openai/gpt-5.5", "context_length": 400_000,
            "architecture": {"input_modalities": ["text", "image"], "modality": "text+image->text"},
            "pricing": {"prompt": "0.00000125", "completion": "0.00001"},
            "supported_parameters": ["seed", "tools"]}]});
        let models = Catalog::OpenRouter.models(&document).unwrap().models;
        assert_eq!(models[0].n_ctx, Some(400_000));
        assert_eq!(models[0].takes_images, Some(true));
    }
}
