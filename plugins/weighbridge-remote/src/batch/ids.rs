//! Names that travel: ours in the vendor's alphabet, the vendor's in ours.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use weighbridge_core::{Error, ErrorKind, Result};

/// The vendor's id of a request: `wb-` and SHA-256 of the caller's id in base64url, 46 of the 64
/// characters `[a-zA-Z0-9_-]` that Anthropic allows. Whoever has the requests can join without a
/// table, in any order and in any process.
pub(super) fn custom_id(id: &str) -> String {
    format!("wb-{}", URL_SAFE_NO_PAD.encode(Sha256::digest(id.as_bytes())))
}

/// Letters, digits, `-` and `_`: needs no encoding in a path, and cannot lead out of it.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 256
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// The name, if it can be put into a path as it is.
///
/// # Errors
/// `Protocol`: names come from the vendor, or from a run log that holds what a vendor said.
pub(super) fn plain<'a>(what: &str, name: &'a str) -> Result<&'a str> {
    if is_plain(name) {
        return Ok(name);
    }
    let shown: String = name.escape_debug().take(80).collect();
    Err(Error::new(
        ErrorKind::Protocol,
        format!("the {what} `{shown}` is none that the vendor gives; nothing was asked"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_becomes_an_id_that_every_vendor_takes() {
        let long = "x".repeat(10_000);
        let ids: Vec<String> =
            ["", "a", "a ", "ä/../\n", &long].iter().map(|id| custom_id(id)).collect();
        for id in &ids {
            assert!(is_plain(id) && id.len() == 46, "{id}");
        }
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), ids.len());
        // Known from `printf a | sha256sum`: later processes must find the same.
        assert_eq!(custom_id("a"), "wb-ypeBEsobvcr6wjGzmiPcTaeG7_gUfE5yuYB3ha_uSLs");
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        for name in ["", "../files", "a/b", "a?b", "a#b", "a%2fb", "a b", "ä", &"x".repeat(300)] {
            assert!(plain("job", name).is_err(), "{name}");
        }
        assert_eq!(plain("job", "msgbatch_01-A").unwrap(), "msgbatch_01-A");
    }
}
