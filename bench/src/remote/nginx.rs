//! The server: nginx with one worker and a fixed answer.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use weighbridge_bench::Result;

use crate::reply::{ROUTE, Reply};

const START_LIMIT: Duration = Duration::from_secs(10);

/// A running server. Dropping it ends its process.
#[derive(Debug)]
pub(crate) struct Nginx {
    child: Child,
    address: SocketAddr,
    // After the process, which writes into it.
    _dir: TempDir,
}

impl Nginx {
    pub(crate) fn start(program: &Path, reply: Reply) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        // The port is free again when the listener is dropped at the end of the statement.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = dir.path().join("nginx.conf");
        fs::write(&config, configuration(address, reply))?;
        let child = Command::new(program)
            .arg("-p")
            .arg(dir.path())
            .arg("-c")
            .arg(&config)
            .args(["-e", "error.log"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
        let mut server = Self { child, address, _dir: dir };
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("nginx ended: {status}").into());
            }
            if started.elapsed() > START_LIMIT {
                return Err(format!("nginx did not listen within {START_LIMIT:?}").into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Base URL of the server.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn chat_url(&self) -> String {
        format!("{}{ROUTE}", self.url())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One process that never closes a connection by itself.
fn configuration(address: SocketAddr, reply: Reply) -> String {
    let (media_type, body) = (reply.media_type(), reply.body());
    format!(
        "daemon off;\nmaster_process off;\npid nginx.pid;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 600s;\n  \
         tcp_nodelay on;\n  client_body_temp_path body;\n  proxy_temp_path proxy;\n  \
         fastcgi_temp_path fastcgi;\n  uwsgi_temp_path uwsgi;\n  scgi_temp_path scgi;\n  \
         server {{\n    listen {address} backlog=4096;\n    \
         location / {{ default_type {media_type}; return 200 '{body}'; }}\n  }}\n}}\n"
    )
}

/// What `nginx -v` says.
pub(crate) fn version(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("-v")
        .output()
        .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}
