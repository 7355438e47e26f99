//! The official OpenAI client for Python, where there is one.

use std::process::Command;
use std::sync::Arc;

use weighbridge_core::{Backend, ErrorKind, Secret, StopReason};
use weighbridge_server::Server;

use crate::support::{Scripted, Step, free};

/// Names the Python that has the `openai` package; `python3` without it.
const PYTHON: &str = "WEIGHBRIDGE_SDK_PYTHON";

#[test]
fn the_official_python_client_understands_the_server() {
    let python = std::env::var(PYTHON).unwrap_or_else(|_| "python3".to_owned());
    let has_sdk = Command::new(&python).args(["-c", "import openai"]).output();
    if !has_sdk.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: `{python}` has no package `openai`; name one that has by {PYTHON}");
        return;
    }
    let whole: Arc<dyn Backend> =
        Scripted::new(vec![Step::token("Hel", -0.5), Step::token("lo", -0.25)]);
    let half: Arc<dyn Backend> =
        Scripted::new(vec![Step::say("half"), Step::fail(ErrorKind::Engine)]);
    let tools: Arc<dyn Backend> =
        Scripted::new(vec![Step::Call("f", "{\"a\":1}"), Step::End(StopReason::ToolCalls)]);
    let names = ["m", "half", "tools"].map(str::to_owned);
    let server = Server::new(names.into_iter().zip([whole, half, tools]))
        .with_token(Secret::new("t0ken"))
        .spawn(free())
        .unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/openai_client.py");
    let output = Command::new(python)
        .args([script, &format!("http://{}/v1", server.addr()), "t0ken"])
        .env("NO_PROXY", "*")
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    println!("{out}");
    assert_eq!(server.stats().models["half"].failed, 1);
}
