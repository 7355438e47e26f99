//! What templates expect of Python: printing, `json.dumps`, methods.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat;

/// Prints a value as Python's `str` does.
pub(super) fn print(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::Undefined => return Ok(()),
        ValueKind::String => value.to_string(),
        _ => repr(value, 0)?,
    };
    out.write_str(&text)
        .map_err(|_| Error::new(ErrorKind::WriteFailure, "the rendering is too long"))
}

/// Python's `repr`.
fn repr(value: &Value, depth: usize) -> Result<String, Error> {
    check_depth(depth)?;
    Ok(match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::Number => number(value),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            let items: Vec<_> =
                value.try_iter()?.map(|item| repr(&item, depth + 1)).collect::<Result<_, _>>()?;
            match items.as_slice() {
                [one] if value.is_tuple() => format!("({one},)"),
                items if value.is_tuple() => format!("({})", items.join(", ")),
                items => format!("[{}]", items.join(", ")),
            }
        }
        ValueKind::Map => {
            let mut items = Vec::new();
            for key in value.try_iter()? {
                let item = value.get_item(&key)?;
                items.push(format!("{}: {}", repr(&key, depth + 1)?, repr(&item, depth + 1)?));
            }
            format!("{{{}}}", items.join(", "))
        }
        _ => value.to_string(),
    })
}

/// A string literal with Python's choice of quotes.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// A number as Python prints it: `1.0`, `1e+16`, `1e-05`.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(number) = f64::try_from(value.clone()) else { return value.to_string() };
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let size = number.abs();
    if number == 0.0 || (1e-4..1e16).contains(&size) {
        return format!("{number:?}");
    }
    // Rust writes `1e16` and `1e-5`; Python wants a sign and two digits.
    let text = format!("{number:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let exponent: i32 = exponent.parse().unwrap_or(0);
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        None => text,
    }
}

/// `json.dumps(x, ensure_ascii=False, …)`, as `transformers` gives it to templates.
pub(super) fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let indent: Option<Value> = kwargs.get("indent")?;
    let indent = match indent {
        Some(indent) if !indent.is_none() => Some(match indent.as_usize() {
            Some(n) => " ".repeat(n.min(64)),
            None => indent.to_string(),
        }),
        _ => None,
    };
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "`separators` takes two texts"));
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let dump = Dump {
        indent,
        item,
        key,
        is_ascii: ensure_ascii.unwrap_or(false),
        sorts: sort_keys.unwrap_or(false),
    };
    let mut out = String::new();
    dump.write(value, 0, &mut out)?;
    Ok(Value::from(out))
}

struct Dump {
    indent: Option<String>,
    item: String,
    key: String,
    is_ascii: bool,
    sorts: bool,
}

impl Dump {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        check_depth(depth)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(('[', ']'), items.len(), depth, out, |index, out| {
                    self.write(&items[index], depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorts {
                    keys.sort_by_key(ToString::to_string);
                }
                self.list(('{', '}'), keys.len(), depth, out, |index, out| {
                    self.string(&keys[index].to_string(), out);
                    out.push_str(&self.key);
                    self.write(&value.get_item(&keys[index])?, depth + 1, out)
                })?;
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::BadSerialization,
                    format!("{kind} cannot be written as JSON"),
                ));
            }
        }
        Ok(())
    }

    fn list(
        &self,
        (open, close): (char, char),
        n: usize,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let new_line = |depth: usize, out: &mut String| {
            if let Some(indent) = self.indent.as_ref().filter(|_| n > 0) {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(open);
        for index in 0..n {
            if index > 0 {
                out.push_str(&self.item);
            }
            new_line(depth + 1, out);
            write(index, out)?;
        }
        new_line(depth, out);
        out.push(close);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.is_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c if self.is_ascii && c as u32 == 0x7f => out.push(c),
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn check_depth(depth: usize) -> Result<(), Error> {
    if depth < 64 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidOperation, "a value is nested more than 64 levels deep"))
}

/// Methods of Python's types that the engine lacks; then those of `minijinja-contrib`.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = string_method(text, name, args)
    {
        return result;
    }
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Map)
        && matches!(
            name,
            "append" | "extend" | "insert" | "pop" | "remove" | "update" | "setdefault" | "clear"
        )
    {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!(
                "`{name}` would change a value in place, which is not supported; use `+` or a namespace"
            ),
        ));
    }
    if value.kind() == ValueKind::Seq && name == "index" {
        let wanted = args.first().cloned().unwrap_or_default();
        let index = value.try_iter()?.position(|item| item == wanted);
        return index.map(Value::from).ok_or_else(|| not_found(name));
    }
    pycompat::unknown_method_callback(state, value, name, args).map_err(|error| {
        match error.kind() {
            ErrorKind::UnknownMethod if error.detail().is_none() => Error::new(
                ErrorKind::UnknownMethod,
                format!("{} has no method `{name}`", value.kind()),
            ),
            _ => error,
        }
    })
}

fn not_found(name: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("`{name}` did not find the value"))
}

fn string_method(text: &str, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let arg = |index: usize| args.get(index).and_then(Value::as_str);
    let three =
        |a: &str, b: &str, c: &str| Value::from(vec![a.to_owned(), b.to_owned(), c.to_owned()]);
    let value = match (name, arg(0)) {
        ("removeprefix", Some(prefix)) => text.strip_prefix(prefix).unwrap_or(text).into(),
        ("removesuffix", Some(suffix)) => text.strip_suffix(suffix).unwrap_or(text).into(),
        ("partition", Some(by)) if !by.is_empty() => match text.split_once(by) {
            Some((before, after)) => three(before, by, after),
            None => three(text, "", ""),
        },
        ("rpartition", Some(by)) if !by.is_empty() => match text.rsplit_once(by) {
            Some((before, after)) => three(before, by, after),
            None => three("", "", text),
        },
        ("rsplit", Some(by)) if !by.is_empty() => {
            let n = args.get(1).and_then(Value::as_usize).unwrap_or(usize::MAX - 1);
            let mut parts: Vec<_> = text.rsplitn(n + 1, by).map(str::to_owned).collect();
            parts.reverse();
            Value::from(parts)
        }
        ("rsplit", None) if args.is_empty() => {
            Value::from(text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        }
        ("index", Some(part)) => match text.find(part) {
            // Python counts characters.
            Some(at) => text[..at].chars().count().into(),
            None => return Some(Err(not_found(name))),
        },
        ("zfill", _) => {
            let (sign, digits) = match text.strip_prefix(['-', '+']) {
                Some(digits) => text.split_at(text.len() - digits.len()),
                None => ("", text),
            };
            let n = width(args)?.saturating_sub(text.chars().count());
            format!("{sign}{}{digits}", "0".repeat(n)).into()
        }
        ("ljust" | "rjust" | "center", _) => {
            let n = width(args)?.saturating_sub(text.chars().count());
            let fill = arg(1).unwrap_or(" ");
            let (left, right) = match name {
                "ljust" => (0, n),
                "rjust" => (n, 0),
                // As CPython: the odd one goes to the left if the width is odd too.
                _ => {
                    let left = n / 2 + (n & width(args)? & 1);
                    (left, n - left)
                }
            };
            format!("{}{text}{}", fill.repeat(left), fill.repeat(right)).into()
        }
        ("swapcase", _) => text
            .chars()
            .flat_map(|c| {
                let swapped: Vec<char> = if c.is_uppercase() {
                    c.to_lowercase().collect()
                } else {
                    c.to_uppercase().collect()
                };
                swapped
            })
            .collect::<String>()
            .into(),
        _ => return None,
    };
    Some(Ok(value))
}

/// The first argument as a width, at most 10,000.
fn width(args: &[Value]) -> Option<usize> {
    Some(args.first()?.as_usize()?.min(10_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(expression: &str) -> String {
        let mut env = minijinja::Environment::new();
        env.set_unknown_method_callback(method);
        env.set_formatter(print);
        env.render_str(&format!("{{{{ {expression} }}}}"), ()).unwrap_or_else(|e| e.to_string())
    }

    #[test]
    fn methods_do_what_python_does() {
        for (expression, python) in [
            ("'a-b-c'.rsplit('-', 1)", "['a-b', 'c']"),
            ("'a b'.rsplit()", "['a', 'b']"),
            ("'<t>x'.removeprefix('<t>')", "x"),
            ("'x</t>'.removesuffix('</t>')", "x"),
            ("'-7'.zfill(4)", "-007"),
            ("'ab'.ljust(4) ~ '|'", "ab  |"),
            ("'ab'.rjust(4, '.')", "..ab"),
            ("'ab'.center(5, '.')", "..ab."),
            ("'abc'.center(6, '.')", ".abc.."),
            ("'éab'.index('a')", "1"),
            ("['a', 'b'].index('b')", "1"),
            ("'a:b:c'.partition(':')[2]", "b:c"),
            ("'a:b:c'.rpartition(':')[0]", "a:b"),
            ("'  x '.strip()", "x"),
            ("1e16", "1e+16"),
            ("0.00001", "1e-05"),
            ("2.50", "2.5"),
        ] {
            assert_eq!(eval(expression), python, "{expression}");
        }
        assert!(eval("[1].append(2)").contains("would change a value in place"));
    }
}
