//! Players inside TLS, and the certificates for them.

use std::net::TcpStream;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::{Player, Record, Script, Speech};

/// What is wrong with a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    None,
    /// It ran out years ago.
    Expired,
    /// It is for another host.
    WrongHost,
}

/// A certificate authority that nobody trusts until told to.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// A new authority.
    ///
    /// # Panics
    /// If the system gives no randomness.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key can be made");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority signs itself"))
    }

    /// Its certificate, as a file of trusted ones holds it.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server's set-up with a certificate for 127.0.0.1 that has this flaw. `protocols` are
    /// offered by ALPN.
    ///
    /// # Panics
    /// If the system gives no randomness.
    pub fn server(&self, flaw: Flaw, protocols: &[&str]) -> Arc<ServerConfig> {
        let host = if flaw == Flaw::WrongHost { "elsewhere.test" } else { "127.0.0.1" };
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
        if flaw == Flaw::Expired {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.0).expect("an authority signs");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS 1.3 is there")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("key and certificate belong together");
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

impl Player {
    /// As [`Player::with`], inside TLS.
    pub fn tls(
        config: Arc<ServerConfig>,
        direct: impl Fn(&Record, usize) -> Script + Send + Sync + 'static,
    ) -> Self {
        Self::launch(Speech::Tls(config), "https", Box::new(direct))
    }

    /// As [`Player::raw`], inside TLS.
    pub fn raw_tls(config: Arc<ServerConfig>, script: Script) -> Self {
        Self::launch(Speech::RawTls(config), "https", Box::new(move |_, _| script.clone()))
    }
}

/// The server's end of a connection; its handshake is done by the first read.
pub(super) fn accept(
    socket: TcpStream,
    config: &Arc<ServerConfig>,
) -> Option<StreamOwned<ServerConnection, TcpStream>> {
    Some(StreamOwned::new(ServerConnection::new(Arc::clone(config)).ok()?, socket))
}
