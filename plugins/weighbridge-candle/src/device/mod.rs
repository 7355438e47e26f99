//! A decoder on candle's tensors, which runs on every device that candle has a backend for.
//!
//! Products over the rows of all sequences, attention sequence by sequence, activations in `f32`.

mod attention;
mod cache;
mod decoder;
mod feed_forward;
mod layers;
mod place;

pub(crate) use decoder::{Decoder, DeviceModel};
pub(crate) use place::Place;

use candle_core::{DType, Device};
use weighbridge_core::{Error, ErrorKind};

/// Where weights go, and as what.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) place: Place,
    pub(crate) device: Device,
    /// Type of weights that are not quantized; `None`: the type they are stored in.
    pub(crate) dtype: Option<DType>,
    /// What becomes of weights that are stored in F16 and stay as stored.
    pub(crate) f16: DType,
}

impl Target {
    /// The error of weights that the device did not take.
    fn load_error(&self, error: candle_core::Error) -> Error {
        Error::new(
            ErrorKind::ModelLoad,
            format!(
                "the weights could not be put on `{}`; if its memory is too small, use a smaller \
                 model, or a GGUF file of this one with more quantization",
                self.place
            ),
        )
        .with("device", self.place)
        .with_source(error)
    }
}

fn engine_error(error: candle_core::Error) -> Error {
    Error::new(ErrorKind::Engine, "candle could not compute a step").with_source(error)
}
