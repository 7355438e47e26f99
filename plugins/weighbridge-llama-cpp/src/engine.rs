//! A loaded model as a [`LogitsEngine`].

use weighbridge_core::{Error, Result};
use weighbridge_engine::logits::{EngineCaps, LogitsEngine, RowSink, SeqId, Snapshot, Span};

use crate::decoder::Decoder;
use crate::embedder::Embedder;

/// A model on llama.cpp, driven by the thread that loaded it.
pub(crate) struct LlamaEngine<'m> {
    pub(crate) caps: EngineCaps,
    /// `None` for models that only embed.
    pub(crate) decoder: Option<Decoder<'m>>,
    pub(crate) embedder: Option<Embedder<'m>>,
}

impl<'m> LlamaEngine<'m> {
    fn decoder(&mut self) -> Result<&mut Decoder<'m>> {
        self.decoder.as_mut().ok_or_else(|| {
            Error::unsupported(
                "text",
                "this model gives embeddings of texts, it does not continue them",
            )
        })
    }
}

impl LogitsEngine for LlamaEngine<'_> {
    fn caps(&self) -> &EngineCaps {
        &self.caps
    }

    fn feed(&mut self, spans: &[Span<'_>], rows: &mut dyn RowSink) -> Result<()> {
        match &mut self.decoder {
            Some(decoder) => decoder.feed(spans, &self.caps, rows),
            None => self.decoder().map(drop),
        }
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.decoder.as_ref().map_or(0, |decoder| decoder.len(seq))
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> Result<u32> {
        self.decoder()?.truncate(seq, len)
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<u32> {
        self.decoder()?.fork(from, to, len)
    }

    fn snapshot(&mut self, seq: SeqId) -> Result<Snapshot> {
        self.decoder()?.snapshot(seq)
    }

    fn restore(&mut self, seq: SeqId, snapshot: &Snapshot) -> Result<()> {
        self.decoder()?.restore(seq, snapshot)
    }

    fn release(&mut self, seq: SeqId) {
        if let Some(decoder) = &mut self.decoder {
            decoder.release(seq);
        }
    }

    fn embed(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        match &mut self.embedder {
            Some(embedder) => embedder.embed(tokens),
            None => Err(Error::unsupported(
                "embed",
                "this model was not opened for embeddings; open it with `embeddings: true` and a \
                 `pooling`",
            )),
        }
    }
}
