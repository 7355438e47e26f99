//! Ollama: `GET /api/tags` and `POST /api/show`.

use serde_json::Value;

use super::{count, text};
use crate::wire::Listed;

/// Where models run that name no other host.
const CLOUD: &str = "ollama.com";
/// Longest line that counts as the name of a licence.
const MAX_LICENSE_BYTES: usize = 100;

pub(super) fn listed(model: &Value) -> Option<Listed> {
    let mut listed = Listed::new(text(&model["model"]).or_else(|| text(&model["name"]))?);
    add_common(&mut listed, model);
    Some(listed)
}

pub(super) fn add_details(listed: &mut Listed, answer: &Value) {
    add_common(listed, answer);
    let info = &answer["model_info"];
    // Keys of the file's own metadata begin with its architecture.
    let of_architecture = |name: &str| {
        let architecture = info["general.architecture"].as_str()?;
        count(&info[format!("{architecture}.{name}")])
    };
    listed.n_ctx = of_architecture("context_length").or(listed.n_ctx);
    listed.n_dims = of_architecture("embedding_length").or(listed.n_dims);
    listed.n_params = info["general.parameter_count"].as_u64().filter(|&n| n > 0);
    listed.license = text(&info["general.license"]).or_else(|| license_name(&answer["license"]));
    listed.weights_sha256 = answer["modelfile"].as_str().and_then(weights_digest);
}

/// What the list and the details of one model have in common.
fn add_common(listed: &mut Listed, model: &Value) {
    let details = &model["details"];
    listed.quantization = text(&details["quantization_level"]).or(listed.quantization.take());
    listed.n_ctx = count(&details["context_length"]).or(listed.n_ctx);
    listed.n_dims = count(&details["embedding_length"]).or(listed.n_dims);
    if let Some(capabilities) = model["capabilities"].as_array() {
        listed.takes_images = Some(capabilities.iter().any(|c| c == "vision"));
        if !capabilities.iter().any(|c| c == "embedding") {
            // The width of the model, not the size of anything that it answers.
            listed.n_dims = None;
        }
    }
    listed.remote_host = remote_host(&listed.id, model);
    let has_file = matches!(details["format"].as_str(), Some("gguf" | "safetensors"));
    listed.has_weights = has_file && listed.remote_host.is_none();
}

/// The host that computes, if it is not this server.
fn remote_host(id: &str, model: &Value) -> Option<String> {
    let host = text(&model["remote_host"]).map(|url| match url::Url::parse(&url) {
        Ok(url) => url.host_str().unwrap_or(CLOUD).to_owned(),
        Err(_) => CLOUD.to_owned(),
    });
    let id = id.to_ascii_lowercase();
    let is_cloud =
        text(&model["remote_model"]).is_some() || id.ends_with(":cloud") || id.ends_with("-cloud");
    host.or_else(|| is_cloud.then(|| CLOUD.to_owned()))
}

/// The first line of a licence, where the file's metadata do not name it.
fn license_name(license: &Value) -> Option<String> {
    let line = license.as_str()?.lines().map(str::trim).find(|line| !line.is_empty())?;
    (line.len() <= MAX_LICENSE_BYTES).then(|| line.to_owned())
}

/// Ollama names blobs by their SHA-256; a model of one blob and no adapter is that file.
fn weights_digest(modelfile: &str) -> Option<String> {
    let mut lines = modelfile.lines().filter_map(|line| line.split_once(' '));
    let mut froms = Vec::new();
    if lines.any(|(command, argument)| {
        if command.eq_ignore_ascii_case("FROM") {
            froms.push(argument);
        }
        command.eq_ignore_ascii_case("ADAPTER")
    }) {
        return None;
    }
    let [from] = froms.as_slice() else { return None };
    let (_, digest) = from.trim().rsplit_once("sha256-")?;
    let is_digest = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    is_digest.then(|| digest.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use crate::catalog::Catalog;
    use serde_json::json;

    #[test]
    fn the_list() {
        let document = json!({"models": [
            {"name": "llama3.2:latest", "model": "llama3.2:latest", "size": 2_019_393_189,
             "digest": "a80c4f17acd5", "modified_at": "2026-01-01T00:00:00Z",
             "details": {"parent_model": "", "format": "gguf", "family": "llama",
                "families": ["llama"], "parameter_size": "3.2B", "quantization_level": "Q4_K_M",
                "context_length": 131_072, "embedding_length": 3072},
             "capabilities": ["completion", "tools"]},
            {"name": "nomic-embed-text:latest", "model": "nomic-embed-text:latest",
             "details": {"format": "gguf", "quantization_level": "F16", "embedding_length": 768},
             "capabilities": ["embedding"]},
            {"name": "gpt-oss:120b-cloud", "model": "gpt-oss:120b-cloud",
             "remote_model": "gpt-oss:120b", "remote_host": "https://ollama.com:443",
             "details": {"format": "", "quantization_level": "MXFP4"}},
            {"name": "kimi:cloud", "model": "kimi:cloud", "details": {"format": "gguf"}},
        ]});
        let page = Catalog::Ollama.models(&document).unwrap();
        insta::assert_debug_snapshot!("ollama_list", page.models);
        assert_eq!(Catalog::Ollama.models(&json!({"models": null})).unwrap().models, []);
        assert_eq!(Catalog::Ollama.models(&json!({"data": []})), None);
    }

    #[test]
    fn the_details_of_one_model() {
        let blob = "dde5aa3fc5ffc17176b5e8bdc82f587b24b2678c6c66101bf7da77af9f7ccdff";
        let mut answer = json!({
            "license": "\n  LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nmore",
            "modelfile": format!("# Modelfile\n# FROM llama3.2\n\nFROM /m/blobs/sha256-{blob}\n\
                TEMPLATE x\n"),
            "details": {"format": "gguf", "family": "llama", "quantization_level": "Q4_K_M"},
            "model_info": {"general.architecture": "llama",
                "general.parameter_count": 3_212_749_888_u64, "llama.context_length": 131_072,
                "llama.embedding_length": 3072},
            "capabilities": ["completion", "vision"]});
        let read = |answer: &serde_json::Value| {
            let mut listed = crate::wire::Listed::new("llama3.2");
            Catalog::Ollama.add_details(&mut listed, answer);
            listed
        };
        insta::assert_debug_snapshot!("ollama_details", read(&answer));
        answer["capabilities"] = json!(["embedding"]);
        answer["model_info"]["general.license"] = "apache-2.0".into();
        let listed = read(&answer);
        assert_eq!(listed.n_dims, Some(3072));
        assert_eq!(listed.license.as_deref(), Some("apache-2.0"));
        for more in ["ADAPTER /m/blobs/sha256-00\n", "FROM /m/blobs/sha256-00\n"] {
            let mut answer = answer.clone();
            let file = format!("{}{more}", answer["modelfile"].as_str().unwrap());
            answer["modelfile"] = file.into();
            assert_eq!(read(&answer).weights_sha256, None, "{more}");
        }
    }
}
