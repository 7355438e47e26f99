//! The workload: samples from a JSONL or CSV file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use weighbridge_core::{Error, ErrorKind, Result, Sample};

use crate::suite::{Data, Suite, nearest};

/// A longer line is a mistake of format rather than a sample.
const MAX_LINE_BYTES: usize = 16 << 20;

/// A sample and what the suite says about it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// The sample, with renamed columns under both names.
    pub sample: Sample,
    /// `column=value` for each slice column.
    pub slices: Vec<String>,
    /// Samples of one cluster are not independent.
    pub cluster: Option<String>,
    /// Must stay on this machine.
    pub is_sensitive: bool,
}

/// A loaded workload.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Dataset {
    /// The samples, in file order.
    pub rows: Vec<Row>,
    /// Lower-case hex SHA-256 of the file.
    pub sha256: String,
}

/// Loads the suite's data.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] that names file, line, column and remedy.
pub fn load(suite: &Suite) -> Result<Dataset> {
    let path = suite.resolve(&suite.data.file);
    let table = read_table(&path)?;
    let rows = rows_of(&table, &suite.data, &path)?;
    Ok(Dataset { rows, sha256: table.sha256 })
}

/// The first row of a data file, to see which columns it has.
///
/// # Errors
/// As [`load`].
pub fn peek(path: &Path) -> Result<Map<String, Value>> {
    let mut table = read_table(path)?;
    Ok(table.rows.swap_remove(0).1)
}

/// A file of rows: line number and fields each.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) rows: Vec<(usize, Map<String, Value>)>,
    pub(crate) sha256: String,
}

fn invalid(path: &Path, line: Option<usize>, message: impl std::fmt::Display) -> Error {
    let place = match line {
        Some(line) => format!("{}:{line}", path.display()),
        None => path.display().to_string(),
    };
    Error::new(ErrorKind::InvalidInput, format!("{place}: {message}"))
}

/// Reads a `.jsonl`, `.ndjson` or `.csv` file.
pub(crate) fn read_table(path: &Path) -> Result<Table> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let file = File::open(path).map_err(|e| {
        invalid(
            path,
            None,
            format!("cannot open the data file: {e}; `data.file` is relative to the suite"),
        )
    })?;
    let mut hash = Sha256::new();
    let rows = match extension.as_str() {
        "jsonl" | "ndjson" => read_jsonl(path, file, &mut hash)?,
        "csv" => read_csv(path, file, &mut hash)?,
        other => {
            return Err(invalid(
                path,
                None,
                format!("cannot read `.{other}` files; use .jsonl (one object per line) or .csv"),
            ));
        }
    };
    if rows.is_empty() {
        return Err(invalid(path, None, "the file has no samples"));
    }
    Ok(Table { rows, sha256: hex::encode(hash.finalize()) })
}

fn read_jsonl(
    path: &Path,
    file: File,
    hash: &mut Sha256,
) -> Result<Vec<(usize, Map<String, Value>)>> {
    let mut reader = BufReader::new(file);
    let mut rows = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = Read::by_ref(&mut reader)
            .take(MAX_LINE_BYTES as u64 + 1)
            .read_until(b'\n', &mut line)
            .map_err(|e| invalid(path, Some(number), format!("cannot read: {e}")))?;
        if read == 0 {
            break;
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(invalid(
                path,
                Some(number),
                format!(
                    "the line is longer than {MAX_LINE_BYTES} bytes; write one object per line"
                ),
            ));
        }
        hash.update(&line);
        let text = std::str::from_utf8(&line).map_err(|e| {
            invalid(
                path,
                Some(number),
                format!("not UTF-8 at byte {} of the line", e.valid_up_to()),
            )
        })?;
        let text = if number == 1 { text.trim_start_matches('\u{feff}') } else { text };
        if text.trim().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_str(text).map_err(|e| {
            invalid(
                path,
                Some(number),
                format!(
                    "not valid JSON at column {}: {e}; each line must be one object",
                    e.column()
                ),
            )
        })?;
        let Value::Object(fields) = value else {
            return Err(invalid(path, Some(number), "not a JSON object; each line must be one"));
        };
        rows.push((number, fields));
    }
    Ok(rows)
}

fn read_csv(
    path: &Path,
    mut file: File,
    hash: &mut Sha256,
) -> Result<Vec<(usize, Map<String, Value>)>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| invalid(path, None, format!("cannot read: {e}")))?;
    hash.update(&bytes);
    let body = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let mut reader = csv::ReaderBuilder::new().flexible(false).from_reader(body);
    let at = |e: &csv::Error| e.position().map(|p| p.line() as usize);
    let headers = reader.headers().map_err(|e| invalid(path, at(&e), &e))?.clone();
    let mut seen = BTreeMap::new();
    for (i, name) in headers.iter().enumerate() {
        if let Some(first) = seen.insert(name, i + 1) {
            return Err(invalid(
                path,
                Some(1),
                format!("columns {first} and {} are both named `{name}`", i + 1),
            ));
        }
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| invalid(path, at(&e), &e))?;
        let line = record.position().map_or(0, |p| p.line() as usize);
        let fields = headers
            .iter()
            .zip(record.iter())
            .map(|(name, value)| (name.to_owned(), Value::from(value)))
            .collect();
        rows.push((line, fields));
    }
    Ok(rows)
}

/// A column of a row, or an error that names the columns there are.
pub(crate) fn column<'a>(
    fields: &'a Map<String, Value>,
    name: &str,
    path: &Path,
    line: usize,
) -> Result<&'a Value> {
    fields.get(name).ok_or_else(|| {
        let hint = match nearest(name, fields.keys().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => {
                let names: Vec<_> = fields.keys().take(30).map(|k| format!("`{k}`")).collect();
                format!("it has {}", names.join(", "))
            }
        };
        invalid(path, Some(line), format!("no column `{name}`; {hint}"))
    })
}

/// A field as text: a string as it is, anything else as its JSON.
pub fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn is_true(value: &Value, path: &Path, line: usize, name: &str) -> Result<bool> {
    match value {
        Value::Bool(b) => Ok(*b),
        Value::Null => Ok(false),
        Value::Number(n) if n.as_f64() == Some(0.0) => Ok(false),
        Value::Number(n) if n.as_f64() == Some(1.0) => Ok(true),
        Value::String(s) => match s.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" | "y" | "1" => Ok(true),
            "false" | "no" | "n" | "0" | "" => Ok(false),
            _ => Err(invalid(
                path,
                Some(line),
                format!(
                    "column `{name}` marks sensitive samples and must be true or false, not {s:?}"
                ),
            )),
        },
        other => Err(invalid(
            path,
            Some(line),
            format!(
                "column `{name}` marks sensitive samples and must be true or false, not {other}"
            ),
        )),
    }
}

fn rows_of(table: &Table, data: &Data, path: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut ids: BTreeMap<String, usize> = BTreeMap::new();
    for (line, fields) in table.rows.iter().take(data.limit.unwrap_or(usize::MAX)) {
        let (line, mut fields) = (*line, fields.clone());
        for (name, source) in &data.columns {
            let value = column(&fields, source, path, line)?.clone();
            fields.insert(name.clone(), value);
        }
        let id = match &data.id {
            Some(name) => as_text(column(&fields, name, path, line)?),
            None => (rows.len() + 1).to_string(),
        };
        if id.is_empty() {
            return Err(invalid(path, Some(line), "the id is empty"));
        }
        if let Some(first) = ids.insert(id.clone(), line) {
            return Err(invalid(
                path,
                Some(line),
                format!("the id `{id}` was used on line {first} already; ids must be unique"),
            ));
        }
        let slices = data
            .slices
            .iter()
            .map(|name| Ok(format!("{name}={}", as_text(column(&fields, name, path, line)?))))
            .collect::<Result<_>>()?;
        let cluster = match &data.cluster {
            Some(name) => Some(as_text(column(&fields, name, path, line)?)),
            None => None,
        };
        let is_sensitive = match &data.sensitive {
            Some(name) => is_true(column(&fields, name, path, line)?, path, line, name)?,
            None => false,
        };
        rows.push(Row { sample: Sample::new(id, fields), slices, cluster, is_sensitive });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::read_str;

    fn load_text(name: &str, text: &str, data: &str) -> Result<Dataset, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
        let suite = format!(
            "version = 1\nname = \"t\"\ncurrent = \"a\"\n[data]\nfile = \"{name}\"\n{data}\n\
             [prompt]\nuser = \"x\"\n[[candidate]]\nname = \"a\"\nmodel = \"p:m\"\n"
        );
        let suite = read_str(&suite, dir.path(), "suite.toml").unwrap();
        load(&suite).map_err(|e| e.to_string().replace(&*dir.path().to_string_lossy(), "DIR"))
    }

    #[test]
    fn jsonl_and_csv_give_the_same_rows() {
        let extra = "id = \"k\"\ncolumns = { email = \"body\" }\nslices = [\"lang\"]\n\
                     cluster = \"g\"\nsensitive = \"s\"";
        let jsonl = "{\"k\":\"1\",\"body\":\"a,b\",\"lang\":\"de\",\"g\":\"x\",\"s\":\"no\"}\n\n\
                     {\"k\":\"2\",\"body\":\"c\",\"lang\":\"en\",\"g\":\"y\",\"s\":\"yes\"}\n";
        let csv = "\u{feff}k,body,lang,g,s\n1,\"a,b\",de,x,no\n2,c,en,y,yes\n";
        let from_jsonl = load_text("d.jsonl", jsonl, extra).unwrap();
        let from_csv = load_text("d.csv", csv, extra).unwrap();
        assert_eq!(from_jsonl.rows, from_csv.rows);
        assert_eq!(from_csv.rows[0].sample.fields["email"], "a,b");
        assert_eq!(from_csv.rows[1].slices, ["lang=en"]);
        assert!(from_csv.rows[1].is_sensitive && !from_csv.rows[0].is_sensitive);
        assert_eq!(from_csv.rows[1].cluster.as_deref(), Some("y"));
    }

    #[test]
    fn mistakes_name_the_line_and_the_remedy() {
        let good = "{\"id\":1}\n";
        let broken = format!("{}{{\"id\":", "{\"id\":0}\n".repeat(16));
        let cases = [
            ("d.jsonl", broken.as_str(), "", "DIR/d.jsonl:17: not valid JSON"),
            ("d.jsonl", "[1]\n", "", "d.jsonl:1: not a JSON object"),
            ("d.jsonl", "", "", "has no samples"),
            ("d.jsonl", good, "slices = [\"ide\"]", "no column `ide`; did you mean `id`?"),
            ("d.jsonl", good, "cluster = \"zzz\"", "no column `zzz`; it has `id`"),
            (
                "d.jsonl",
                "{\"id\":1}\n{\"id\":1}\n",
                "id = \"id\"",
                "d.jsonl:2: the id `1` was used on line 1",
            ),
            ("d.jsonl", good, "sensitive = \"id\"\ncolumns = {id = \"id\"}", ""),
            ("d.csv", "a,a\n1,2\n", "", "both named `a`"),
            ("d.csv", "a,b\n1,2\n1\n", "", "d.csv:3:"),
            ("d.txt", "x", "", "cannot read `.txt` files; use .jsonl"),
        ];
        for (name, text, extra, expected) in cases {
            match load_text(name, text, extra) {
                Err(error) => assert!(error.contains(expected), "{error}"),
                Ok(_) => assert!(expected.is_empty(), "{name} {text} was accepted"),
            }
        }
    }
}
