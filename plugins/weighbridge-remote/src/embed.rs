//! What must hold of embeddings, whoever computed them, and the body that OpenAI's servers take.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use weighbridge_core::{EmbedRequest, Embedding, Error, ErrorKind, Result, Usage};

use crate::wire::Route;

/// The size of the vectors of OpenAI's own models.
pub(crate) fn openai_size(model: &str) -> Option<u32> {
    match model {
        "text-embedding-3-large" => Some(3072),
        "text-embedding-3-small" | "text-embedding-ada-002" => Some(1536),
        _ => None,
    }
}

/// Refuses vectors that are too few, too many, of another size than `n_dims`, or not finite.
pub(crate) fn check(embeddings: &[Embedding], n_texts: usize, n_dims: u32) -> Result<()> {
    if embeddings.len() != n_texts {
        return Err(Error::new(ErrorKind::Protocol, "the answer has not one vector per text")
            .with("n_texts", n_texts)
            .with("n_vectors", embeddings.len()));
    }
    for (index, embedding) in embeddings.iter().enumerate() {
        if embedding.vector.len() != n_dims as usize {
            return Err(Error::new(
                ErrorKind::Protocol,
                "the vector has another size than stated; set option `dimensions` to the model's",
            )
            .with("index", index)
            .with("n_dims", embedding.vector.len())
            .with("stated", n_dims));
        }
        if embedding.vector.iter().any(|x| !x.is_finite()) {
            return Err(Error::new(ErrorKind::Protocol, "the vector holds a number that is none")
                .with("index", index));
        }
    }
    Ok(())
}

/// Scales a vector to length 1.
///
/// # Errors
/// `Protocol` for a vector of zeros, which has no direction.
pub(crate) fn normalize(vector: &mut [f32]) -> Result<()> {
    let length = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    if length == 0.0 {
        return Err(Error::new(ErrorKind::Protocol, "the vector is all zeros"));
    }
    for x in vector {
        *x = (f64::from(*x) / length) as f32;
    }
    Ok(())
}

/// Route and body of OpenAI's `/embeddings`. Vectors are asked for as base64, which loses nothing
/// and is a quarter of the bytes; servers that send numbers instead are understood.
pub(crate) fn openai_call(
    model: &str,
    request: &EmbedRequest,
    dimensions: Option<u32>,
) -> (Route, Map<String, Value>) {
    let mut body = Map::new();
    body.insert("model".to_owned(), model.into());
    body.insert("input".to_owned(), request.texts.clone().into());
    body.insert("encoding_format".to_owned(), "base64".into());
    if let Some(dimensions) = dimensions {
        body.insert("dimensions".to_owned(), dimensions.into());
    }
    (Route::new("/embeddings"), body)
}

/// Reads the answer of OpenAI's `/embeddings`, by the index of each vector.
pub(crate) fn openai_answer(answer: &Value) -> Result<Vec<Embedding>> {
    let bad = |why: &str| Error::new(ErrorKind::Protocol, format!("the answer {why}"));
    let data = answer["data"].as_array().ok_or_else(|| bad("holds no list `data`"))?;
    let mut vectors: Vec<Option<Vec<f32>>> = vec![None; data.len()];
    for (position, entry) in data.iter().enumerate() {
        let index = entry["index"].as_u64().map_or(Ok(position), usize::try_from).ok();
        let slot = index.and_then(|index| vectors.get_mut(index)).filter(|slot| slot.is_none());
        let slot = slot.ok_or_else(|| bad("gives an index twice or out of bounds"))?;
        let vector = vector(&entry["embedding"]).ok_or_else(|| {
            bad("holds an `embedding` that is neither numbers nor base64 of 32-bit floats")
                .with("index", position)
        })?;
        *slot = Some(vector);
    }
    let mut usage = Usage::default();
    if let [_] = data.as_slice() {
        usage.n_prompt_tokens = answer["usage"]["prompt_tokens"].as_u64().filter(|&n| n > 0);
    }
    usage.raw = Some(answer["usage"].clone()).filter(Value::is_object);
    let embeddings = vectors.into_iter().flatten().map(|vector| {
        let mut embedding = Embedding::new(vector);
        if answer["model"].is_string() {
            embedding.effective = embedding.effective.with("served_model", answer["model"].clone());
        }
        embedding.usage = usage.clone();
        embedding
    });
    Ok(embeddings.collect())
}

fn vector(value: &Value) -> Option<Vec<f32>> {
    match value {
        Value::Array(numbers) => numbers.iter().map(|x| Some(x.as_f64()? as f32)).collect(),
        Value::String(text) => {
            let bytes = STANDARD.decode(text).ok()?;
            let (floats, rest) = bytes.as_chunks::<4>();
            rest.is_empty().then(|| floats.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn vectors(answer: &Value) -> Result<Vec<Vec<f32>>> {
        Ok(openai_answer(answer)?.into_iter().map(|embedding| embedding.vector).collect())
    }

    #[test]
    fn vectors_are_joined_by_index_and_read_as_numbers_or_base64() {
        // base64 of the little-endian floats 1.0 and -2.5
        let answer = json!({"model": "served", "usage": {"prompt_tokens": 5, "total_tokens": 5},
            "data": [{"index": 1, "embedding": "AACAPwAAIMA="}, {"index": 0, "embedding": [0.5, 2]}]});
        assert_eq!(vectors(&answer).unwrap(), [[0.5, 2.0], [1.0, -2.5]]);
        let embeddings = openai_answer(&answer).unwrap();
        assert_eq!(embeddings[0].effective.values["served_model"], "served");
        // The count is of both texts together, so neither has it.
        assert_eq!(embeddings[0].usage.n_prompt_tokens, None);
        assert_eq!(embeddings[0].usage.raw.as_ref().unwrap()["prompt_tokens"], 5);
        // Without an index the order counts.
        let answer = json!({"data": [{"embedding": [1]}, {"embedding": [2]}]});
        assert_eq!(vectors(&answer).unwrap(), [[1.0], [2.0]]);
    }

    #[test]
    fn damaged_answers_are_refused() {
        for answer in [
            json!({}),
            json!({"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]}),
            json!({"data": [{"index": 7, "embedding": [1]}]}),
            json!({"data": [{"embedding": "AACAPw"}]}),
            json!({"data": [{"embedding": "AAAA"}]}),
            json!({"data": [{"embedding": ["1"]}]}),
            json!({"data": [{}]}),
        ] {
            assert_eq!(vectors(&answer).unwrap_err().kind(), ErrorKind::Protocol, "{answer}");
        }
        let one = |vector| [Embedding::new(vector)];
        assert!(check(&one(vec![1.0, 2.0]), 1, 2).is_ok());
        for (vector, n_texts, n_dims) in
            [(vec![1.0], 2, 1), (vec![1.0], 1, 2), (vec![f32::INFINITY], 1, 1)]
        {
            let error = check(&one(vector), n_texts, n_dims).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol);
        }
        assert!(normalize(&mut [0.0, 0.0]).is_err());
        let mut vector = [3.0, 4.0];
        normalize(&mut vector).unwrap();
        assert_eq!(vector, [0.6, 0.8]);
    }
}
