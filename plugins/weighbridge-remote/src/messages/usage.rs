//! Token counts of Messages answers.

use serde_json::{Map, Value};
use weighbridge_core::Usage;

use crate::emitter::Emitter;

/// Overlays the counts so far with newer ones. They are cumulative, and counts that do not apply
/// are left out or null.
pub(super) fn merge(counts: &mut Map<String, Value>, newer: &Value, out: &mut Emitter<'_>) {
    for (name, value) in newer.as_object().into_iter().flatten() {
        if value.is_null() {
            continue;
        }
        if let Some(before) = counts.get(name).and_then(Value::as_u64)
            && value.as_u64().is_some_and(|now| now < before)
        {
            out.warning(format!("usage_contradicts_itself: the cumulative {name} became less"));
        }
        counts.insert(name.clone(), value.clone());
    }
}

/// Takes the counts into the one definition. A count of zero where there must be some is unknown:
/// servers that do not count send zeros.
pub(super) fn normalized(counts: &Map<String, Value>, has_output: bool) -> Usage {
    let count = |name: &str| counts.get(name).and_then(Value::as_u64);
    let cached = count("cache_read_input_tokens");
    let written = count("cache_creation_input_tokens");
    // The vendor counts apart what was read from a cache and what was written to one.
    let prompt = count("input_tokens").map(|fresh| {
        fresh.saturating_add(cached.unwrap_or(0)).saturating_add(written.unwrap_or(0))
    });
    let thought = counts.get("output_tokens_details").and_then(|d| d["thinking_tokens"].as_u64());
    let mut usage = Usage::default();
    usage.n_prompt_tokens = prompt.filter(|&n| n > 0);
    usage.n_cached_tokens = cached;
    usage.n_cache_write_tokens = written;
    usage.n_generated_tokens = count("output_tokens").filter(|&n| n > 0 || !has_output);
    usage.n_reasoning_tokens = thought;
    usage.raw = Some(Value::Object(counts.clone()));
    usage
}
