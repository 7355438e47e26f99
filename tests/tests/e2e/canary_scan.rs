//! Looks for a key in bytes, in the eight forms in which programs let keys slip.

/// The forms of a key, by name. Each is something that an encoder would write.
pub(crate) fn forms(key: &str) -> Vec<(&'static str, Vec<String>)> {
    let bytes = key.as_bytes();
    let hex = |upper: bool| -> String {
        bytes.iter().map(|b| if upper { format!("{b:02X}") } else { format!("{b:02x}") }).collect()
    };
    let percent = |keeps: fn(u8) -> bool| -> String {
        bytes
            .iter()
            .map(|&b| if keeps(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
            .collect()
    };
    let json = serde_json::Value::from(key).to_string().trim_matches('"').to_owned();
    let html = key.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    vec![
        ("raw", vec![key.to_owned()]),
        ("base64", (0..3).map(|n| base64_within(bytes, n, b"+/")).collect()),
        ("base64url", (0..3).map(|n| base64_within(bytes, n, b"-_")).collect()),
        (
            "percent",
            vec![
                percent(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b)),
                percent(|b| b.is_ascii_graphic() && !b"\"<>%".contains(&b)),
            ],
        ),
        (
            "json",
            vec![
                json.clone(),
                json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026"),
            ],
        ),
        (
            "html",
            vec![
                html.clone(),
                html.replace('"', "&quot;"),
                html.replace('"', "&#34;"),
                html.replace('"', "&quot;").replace('/', "&#x2f;"),
            ],
        ),
        ("hex", vec![hex(false), hex(true)]),
    ]
}

/// The names of the forms in which the key is in these bytes.
pub(crate) fn find(bytes: &[u8], key: &str) -> Vec<&'static str> {
    let mut found: Vec<_> = forms(key)
        .into_iter()
        .filter(|(_, texts)| texts.iter().any(|text| holds(bytes, text.as_bytes())))
        .map(|(name, _)| name)
        .collect();
    if (4..key.len() - 3).any(|cut| is_split(bytes, &key[..cut], &key[cut..])) {
        found.push("split");
    }
    found
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Both halves with a line end between them, real or escaped, and indentation.
fn is_split(bytes: &[u8], first: &str, second: &str) -> bool {
    bytes.windows(first.len()).enumerate().filter(|(_, window)| *window == first.as_bytes()).any(
        |(start, _)| {
            let rest = String::from_utf8_lossy(&bytes[start + first.len()..]);
            let line_end =
                ["\r\n", "\n", "\\r\\n", "\\n"].into_iter().find(|e| rest.starts_with(e));
            line_end.is_some_and(|end| rest[end.len()..].trim_start().starts_with(second))
        },
    )
}

/// The characters that are the key's own, where `n_before` bytes come before it.
fn base64_within(key: &[u8], n_before: usize, last_two: &[u8; 2]) -> String {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let all = [&vec![0; n_before][..], key].concat();
    let bits: Vec<u8> = all.iter().flat_map(|b| (0..8).rev().map(move |i| b >> i & 1)).collect();
    let characters = bits.chunks_exact(6).map(|six| {
        let value = six.iter().fold(0, |value, bit| value << 1 | usize::from(*bit));
        char::from(*ALPHABET.get(value).unwrap_or_else(|| &last_two[value - 62]))
    });
    characters.skip((8 * n_before).div_ceil(6)).collect()
}

#[test]
fn every_form_is_found_where_it_is_and_nothing_where_it_is_not() {
    let key = super::canary::KEY;
    for (name, texts) in forms(key) {
        for text in texts {
            let planted = format!("before {text}after");
            assert!(find(planted.as_bytes(), key).contains(&name), "{name}: {text}");
        }
    }
    let (first, second) = key.split_at(9);
    for line_end in ["\n", "\r\n", "\n    ", "\\n", "\\r\\n  "] {
        let planted = format!("{first}{line_end}{second}");
        assert_eq!(find(planted.as_bytes(), key), ["split"], "{line_end:?}");
    }
    // Of another's hand: `printf KEY | base64`, and with one and two bytes before it.
    for planted in [
        "c2stY2FuYXJ5LTlmODYvZDArODEmODg0ImM3PGQ2PjU5",
        "YXNrLWNhbmFyeS05Zjg2L2QwKzgxJjg4NCJjNzxkNj41OQ==",
        "YWJzay1jYW5hcnktOWY4Ni9kMCs4MSY4ODQiYzc8ZDY+NTk=",
    ] {
        assert!(find(planted.as_bytes(), key).contains(&"base64"), "{planted}");
    }
    assert_eq!(find(b"sk-canary is no key, nor is [redacted]", key), [""; 0]);
}
