//! Log-probabilities as OpenAI's protocols word them.

use serde_json::Value;
use weighbridge_core::{TokenId, TokenLogprob, TopLogprob};

/// Reads a list of tokens, each with at most `n_top` alternatives; entries that are none are left
/// out.
pub(crate) fn tokens(entries: &Value, n_top: u8) -> Vec<TokenLogprob> {
    let entries = entries.as_array().into_iter().flatten();
    entries.filter_map(|entry| token(entry, n_top)).collect()
}

fn token(entry: &Value, n_top: u8) -> Option<TokenLogprob> {
    let bytes = bytes(entry)?;
    let mut top: Vec<TopLogprob> = entry["top_logprobs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            Some(TopLogprob::new(id(entry), self::bytes(entry)?, entry["logprob"].as_f64()?))
        })
        .collect();
    // Stable, so that equals keep the server's order.
    top.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
    let rank = top.iter().position(|alternative| alternative.bytes == bytes);
    top.truncate(n_top.into());
    let mut token = TokenLogprob::new(id(entry), bytes, entry["logprob"].as_f64());
    token.rank = rank.and_then(|rank| u32::try_from(rank).ok());
    token.top = top;
    Some(token)
}

/// Told by llama.cpp's server.
fn id(entry: &Value) -> Option<TokenId> {
    entry["id"].as_u64().and_then(|id| u32::try_from(id).ok()).map(TokenId)
}

/// `bytes` where the server gives them: `token` cannot show half a character.
fn bytes(entry: &Value) -> Option<Vec<u8>> {
    let given = entry["bytes"].as_array().and_then(|bytes| {
        bytes.iter().map(|b| b.as_u64().and_then(|b| u8::try_from(b).ok())).collect()
    });
    given.or_else(|| Some(entry["token"].as_str()?.as_bytes().to_vec()))
}
