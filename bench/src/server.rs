//! The peer `llama-server`: started on loopback, asked over HTTP, ended by its handle.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;
use weighbridge_core::TokenId;

use weighbridge_bench::Result;

const START_LIMIT: Duration = Duration::from_secs(120);
/// Of one request, which may wait for all others.
const REQUEST_LIMIT: Duration = Duration::from_secs(900);

/// A running server. Dropping it ends its process.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    agent: Agent,
    url: String,
}

impl Server {
    /// Starts the program on a free port of the loopback interface and waits until it answers.
    pub(crate) fn start(program: &Path, model: &Path, args: &[String]) -> Result<Self> {
        // The port is free again when the listener is dropped at the end of the statement.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new(program)
            .arg("--model")
            .arg(model)
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--offline", "--no-ui"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
        let config = Agent::config_builder().timeout_global(Some(REQUEST_LIMIT)).build();
        let url = format!("http://127.0.0.1:{port}");
        let mut server = Self { child, agent: config.into(), url };
        server.wait_until_ready()?;
        Ok(server)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        // Until the model is loaded the answer is 503, which ureq takes for an error.
        while self.agent.get(format!("{}/health", self.url)).call().is_err() {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("llama-server ended while it loaded: {status}").into());
            }
            if started.elapsed() > START_LIMIT {
                return Err(format!("llama-server did not load within {START_LIMIT:?}").into());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Sends all prompts at once, each from a thread of its own, and takes the time until the last
    /// answer is there.
    pub(crate) fn generate_all(
        &self,
        prompts: &[Vec<TokenId>],
        n_generated: usize,
        caches_prompts: bool,
    ) -> Result<Duration> {
        let started = Instant::now();
        thread::scope(|scope| {
            let calls: Vec<_> = prompts
                .iter()
                .map(|p| scope.spawn(|| self.generate(p, n_generated, caches_prompts)))
                .collect();
            calls.into_iter().try_for_each(|call| {
                call.join().map_err(|_| "a client thread panicked".to_owned())?
            })
        })?;
        Ok(started.elapsed())
    }

    fn generate(
        &self,
        prompt: &[TokenId],
        n_generated: usize,
        caches_prompts: bool,
    ) -> std::result::Result<(), String> {
        let prompt: Vec<u32> = prompt.iter().map(|token| token.0).collect();
        let body = json!({
            "prompt": prompt,
            "n_predict": n_generated,
            "cache_prompt": caches_prompts,
            // The cheapest way to be greedy.
            "samplers": ["top_k"],
            "top_k": 1,
            "ignore_eos": true,
            "stream": false,
            "response_fields": ["tokens_predicted", "tokens_evaluated"],
        });
        let answer = self
            .agent
            .post(format!("{}/completion", self.url))
            .header("content-type", "application/json")
            .send(body.to_string())
            .and_then(|mut response| response.body_mut().read_to_string())
            .map_err(|e| format!("llama-server: {e}"))?;
        let answer: Value = serde_json::from_str(&answer)
            .map_err(|e| format!("llama-server answered {answer:?}: {e}"))?;
        let got = (answer["tokens_evaluated"].as_u64(), answer["tokens_predicted"].as_u64());
        let asked = (Some(prompt.len() as u64), Some(n_generated as u64));
        match got == asked {
            true => Ok(()),
            false => Err(format!("llama-server was asked for {asked:?} tokens and did {got:?}")),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
