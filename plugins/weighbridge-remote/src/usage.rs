//! Token counts as OpenAI's protocols word them, taken into the one definition.

use serde_json::Value;
use weighbridge_core::Usage;

use crate::emitter::Emitter;

/// What the counts are called.
#[derive(Debug)]
pub(crate) struct Names {
    prompt: &'static str,
    prompt_details: &'static str,
    generated: &'static str,
    generated_details: &'static str,
}

/// Chat Completions.
pub(crate) const CHAT: Names = Names {
    prompt: "prompt_tokens",
    prompt_details: "prompt_tokens_details",
    generated: "completion_tokens",
    generated_details: "completion_tokens_details",
};

/// Responses.
pub(crate) const RESPONSES: Names = Names {
    prompt: "input_tokens",
    prompt_details: "input_tokens_details",
    generated: "output_tokens",
    generated_details: "output_tokens_details",
};

/// Reads a `usage` object. A count of zero where there must be some is unknown: servers that do
/// not count send zeros.
pub(crate) fn read(raw: Value, names: &Names, out: &mut Emitter<'_>) -> Usage {
    let prompt = raw[names.prompt].as_u64();
    let generated = raw[names.generated].as_u64();
    if let (Some(prompt), Some(generated), Some(total)) =
        (prompt, generated, raw["total_tokens"].as_u64())
        && prompt.checked_add(generated) != Some(total)
    {
        out.warning("usage_contradicts_itself: total_tokens is not the sum of its parts");
    }
    let prompt_details = &raw[names.prompt_details];
    let mut usage = Usage::default();
    usage.n_prompt_tokens = prompt.filter(|&n| n > 0);
    usage.n_generated_tokens = generated.filter(|&n| n > 0 || !out.has_content());
    usage.n_cached_tokens = prompt_details["cached_tokens"].as_u64();
    usage.n_cache_write_tokens = prompt_details["cache_write_tokens"].as_u64();
    usage.n_reasoning_tokens = raw[names.generated_details]["reasoning_tokens"].as_u64();
    usage.raw = Some(raw);
    usage
}
