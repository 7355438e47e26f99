//! The peer that is the least a Rust program can do: hyper on one connection, on this thread.

use std::net::SocketAddr;
use std::sync::Mutex;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use weighbridge_bench::Result;

use crate::reply::{ROUTE, Sent, TEXT};

/// One open connection.
#[derive(Debug)]
pub(crate) struct Bare {
    runtime: Runtime,
    sender: Mutex<SendRequest<Full<Bytes>>>,
    address: SocketAddr,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Bare {
    pub(crate) fn connect(address: SocketAddr, sent: &Sent) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let sender = runtime.block_on(async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            Result::Ok(sender)
        })?;
        let (headers, body) = (sent.headers.clone(), Bytes::from(sent.body.clone()));
        Ok(Self { runtime, sender: Mutex::new(sender), address, headers, body })
    }

    /// One call, whose answer must hold the text.
    pub(crate) fn one(&self) -> Result<()> {
        let (status, body) = self.exchange()?;
        let is_right = status == StatusCode::OK
            && body.windows(TEXT.len()).any(|part| part == TEXT.as_bytes());
        if is_right { Ok(()) } else { Err(format!("the bare client got {status}").into()) }
    }

    /// One call, whatever the answer.
    #[cfg(test)]
    pub(crate) fn raw(&self) -> Result<()> {
        self.exchange().map(drop)
    }

    fn exchange(&self) -> Result<(StatusCode, Bytes)> {
        let mut request = Request::post(ROUTE).header("host", self.address.to_string());
        for (name, value) in &self.headers {
            request = request.header(name.as_str(), value.as_str());
        }
        let request = request.body(Full::new(self.body.clone()))?;
        let mut sender = self.sender.lock().map_err(|_| "an earlier call panicked")?;
        self.runtime.block_on(async {
            sender.ready().await?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok((status, response.into_body().collect().await?.to_bytes()))
        })
    }
}
