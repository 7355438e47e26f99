//! Devices by their names.

use std::fmt;
use std::panic::catch_unwind;
use std::str::FromStr;

use candle_core::Device;
use weighbridge_core::{Error, ErrorKind, Result};

/// A device by its name: `cpu`, `cuda:0`, `metal:0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Place {
    #[default]
    Cpu,
    Cuda(usize),
    Metal(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Metal(index) => write!(f, "metal:{index}"),
        }
    }
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, index) = match text.split_once(':') {
            None => (text, Some(0)),
            // Without a sign.
            Some((kind, index)) => (kind, index.parse().ok().filter(|_| !index.starts_with('+'))),
        };
        match (kind, index) {
            ("cpu", Some(0)) if text == kind => Ok(Self::Cpu),
            ("cuda", Some(index)) => Ok(Self::Cuda(index)),
            ("metal", Some(index)) => Ok(Self::Metal(index)),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "option `device` is `{text}`; candle knows `cpu`, `cuda`, `cuda:N`, `metal` and \
                     `metal:N`, where N is the number of the GPU, from 0 on"
                ),
            )
            .with("device", text)),
        }
    }
}

impl Place {
    /// The device, if this build has its backend and this machine has it.
    pub(crate) fn open(self) -> Result<Device> {
        let (device, is_built, feature, toolkit) = match self {
            Self::Cpu => return Ok(Device::Cpu),
            Self::Cuda(index) => {
                let is_built = cfg!(feature = "cuda");
                let device = is_built.then(|| Device::new_cuda(index));
                (device, is_built, "cuda", "NVIDIA's CUDA toolkit")
            }
            Self::Metal(index) => {
                let is_built = cfg!(feature = "metal");
                // candle 0.11.1 panics for a number that no GPU has.
                let open = || catch_unwind(|| Device::new_metal(index));
                let device = is_built.then(|| {
                    let missing = |_| Err(candle_core::Error::msg("no GPU has this number"));
                    open().unwrap_or_else(missing)
                });
                (device, is_built, "metal", "macOS")
            }
        };
        let remedy = match device {
            Some(Ok(device)) => return Ok(device),
            _ if !is_built => format!(
                "this build is without it: build with `--features candle-{feature}` (the feature \
                 `{feature}` of weighbridge-candle), which needs {toolkit}, or leave `device` out"
            ),
            _ => {
                "there is no such GPU, or its driver does not answer: give the number of one that \
                  is there, or leave `device` out"
                    .to_owned()
            }
        };
        let error = Error::new(ErrorKind::ModelLoad, format!("cannot use `{self}`: {remedy}"))
            .with("device", self);
        Err(match device {
            Some(Err(source)) => error.with_source(source),
            _ => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (text, expected, name) in [
            ("cpu", Place::Cpu, "cpu"),
            ("cuda", Place::Cuda(0), "cuda:0"),
            ("cuda:3", Place::Cuda(3), "cuda:3"),
            ("metal:1", Place::Metal(1), "metal:1"),
        ] {
            let place: Place = text.parse().unwrap();
            assert_eq!((place, place.to_string().as_str()), (expected, name));
        }
        for text in ["", "tpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "Metal"] {
            let error = text.parse::<Place>().unwrap_err();
            assert!(error.to_string().contains(&format!("is `{text}`; candle knows `cpu`")));
        }
    }
}
