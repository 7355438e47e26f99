//! `weighbridge serve`.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use weighbridge::Result;
use weighbridge_server::Server;

use crate::keys::KeyArgs;
use crate::try_model::open;

#[derive(Args)]
pub(crate) struct ServeArgs {
    /// The model, as PROVIDER:LOCATION, for instance candle:models/my-model
    model: String,
    /// The name clients ask for; default: the model's own
    #[arg(long)]
    name: Option<String>,
    /// Where to listen, on this machine only; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8080")]
    address: SocketAddr,
    /// Append the start and the end of every call to this file
    #[arg(long)]
    journal: Option<PathBuf>,
    /// End when standard input closes, so that the server dies with whoever started it
    #[arg(long)]
    until_stdin_closes: bool,
    /// Open no outgoing connection: only models that run in this process
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    keys: KeyArgs,
}

pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let backend = open(&args.model, args.offline, &args.keys)?;
    let name = args.name.clone().unwrap_or_else(|| backend.card().id.clone());
    let mut server = Server::new([(name, backend)]);
    if let Some(journal) = &args.journal {
        server = server.with_journal_file(journal)?;
    }
    let running = server.spawn(args.address)?;
    // A program that started this one reads the address from this line.
    crate::print(&format!("serving http://{}/v1\n", running.addr()))?;
    if args.until_stdin_closes {
        let mut rest = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut rest);
        return Ok(());
    }
    loop {
        std::thread::park();
    }
}
