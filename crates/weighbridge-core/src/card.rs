//! What a model is: the provenance of every number it produces.

use serde::{Deserialize, Serialize};

/// Who holds the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Weights {
    /// A file that anyone with it can run.
    Open,
    /// Only reachable behind somebody's API.
    Closed,
    /// A server or a file of answers does not tell.
    Unknown,
    /// A demo model that plays a closed one. Evidence about no commercial model.
    StandIn,
}

/// Where inference happens.
///
/// Loopback proves where the socket ends, not where inference happens: an unverified local server
/// counts as the network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum Placement {
    /// In this process, or in a child that it owns.
    InProcess,
    /// A server on this machine.
    LocalServer {
        /// Whether it is known to compute here, because this program started it or the user
        /// vouches for it. An unverified one is treated as [`Placement::Network`].
        verified: bool,
    },
    /// Somebody else's machine.
    Network {
        /// Host, with port if not the scheme's own.
        host: String,
    },
    /// No inference: answers that already exist.
    Recorded,
}

impl Placement {
    /// Whether a sample that must stay on this machine may go there.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::InProcess | Self::LocalServer { verified: true } | Self::Recorded)
    }

    /// Whether a call costs money or leaves the process, and is logged before it is made.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::LocalServer { .. } | Self::Network { .. })
    }
}

/// The engine that runs the model.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EngineInfo {
    /// For instance `candle` or `llama.cpp`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Build facts that can change numbers or speed: commit, instruction set, features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
}

impl EngineInfo {
    /// An engine with its version.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self { name: name.into(), version: version.into(), build: None }
    }
}

/// What a model is. Unknown facts are `None`, never guessed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ModelCard {
    /// The model's own name: a folder, a file stem, or the vendor's id.
    pub id: String,
    /// The provider that opened it.
    pub provider: String,
    /// Who holds the weights.
    pub weights: Weights,
    /// Lower-case hex SHA-256 over the weights.
    pub weights_sha256: Option<String>,
    /// For instance `F16` or `Q4_K`.
    pub quantization: Option<String>,
    /// Number of parameters.
    pub n_params: Option<u64>,
    /// Context length in tokens.
    pub n_ctx: Option<u32>,
    /// Licence id as declared, SPDX where possible.
    pub license: Option<String>,
    /// The engine and its build.
    pub engine: Option<EngineInfo>,
    /// The device really used.
    pub device: Option<String>,
    /// Lower-case hex SHA-256 of the chat template.
    pub template_sha256: Option<String>,
    /// Lower-case hex SHA-256 of the tokenizer definition.
    pub tokenizer_sha256: Option<String>,
    /// Where inference happens.
    pub placement: Placement,
}

impl ModelCard {
    /// A card with every optional fact unknown.
    pub fn new(
        id: impl Into<String>,
        provider: impl Into<String>,
        weights: Weights,
        placement: Placement,
    ) -> Self {
        Self {
            id: id.into(),
            provider: provider.into(),
            weights,
            weights_sha256: None,
            quantization: None,
            n_params: None,
            n_ctx: None,
            license: None,
            engine: None,
            device: None,
            template_sha256: None,
            tokenizer_sha256: None,
            placement,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unverified_local_server_is_not_local() {
        assert!(!Placement::LocalServer { verified: false }.is_local());
        assert!(Placement::LocalServer { verified: true }.is_local());
        assert!(Placement::LocalServer { verified: true }.is_remote());
        assert!(!Placement::Network { host: "api.example".into() }.is_local());
    }
}
