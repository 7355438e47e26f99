//! `bench-engines`: speed of the local engines through the public API, in turns with their peers.
//!
//! Run it by `cargo xtask bench engines`, which makes the models, builds the peers and builds this
//! for the CPU at hand. Method and results are in `docs/benchmarks.md`.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A program talks to its user.

mod goals;
mod ours;
mod peers;
mod sections;
mod server;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use serde_json::json;
use weighbridge_bench::report::Report;
use weighbridge_bench::{Result, machine};
use weighbridge_core::link_plugins;

use crate::peers::Peers;
use crate::sections::{Bench, Section, Sizes};
use crate::workload::Draw;

/// Measures the local engines.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the models that `bench/models.py` makes.
    #[arg(long)]
    models: PathBuf,
    /// File that the results are written to, as JSON.
    #[arg(long)]
    out: PathBuf,
    /// Folder of llama-bench, llama-batched-bench and llama-server; without it only our own rates
    /// are measured.
    #[arg(long)]
    peers: Option<PathBuf>,
    /// What the peers' source is, for the report.
    #[arg(long, requires = "peers")]
    peers_source: Option<String>,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Section>,
    /// Only models whose names begin like this, such as `smol-135m-q8_0`.
    #[arg(long)]
    model: Option<String>,
    /// Rounds; each measures everybody once.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// One short round, to see that everything works.
    #[arg(long)]
    quick: bool,
    /// Threads of llama.cpp, ours and the peers'. Default: all cores. candle, ours and the stock one,
    /// takes as many as RAYON_NUM_THREADS says, by default as well all cores.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-engines: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let n_threads = match args.threads {
        Some(n) => n,
        None => std::thread::available_parallelism()?.get(),
    };
    let peers = args.peers.map(|dir| Peers::new(dir, n_threads)).transpose()?;
    let about = json!({
        "date": jiff::Timestamp::now().to_string(),
        "command": std::env::args().collect::<Vec<_>>().join(" "),
        "machine": machine::describe(),
        "n_threads": n_threads,
        "n_rounds": args.rounds,
        "quick": args.quick,
        "weighbridge": { "version": env!("CARGO_PKG_VERSION"), "commit": machine::commit() },
        "llama_cpp_peer": match &peers {
            Some(peers) => json!({ "source": args.peers_source, "version": peers.version()? }),
            None => json!(null),
        },
    });
    println!("{about:#}");
    if machine::load_average().is_some_and(|load| load > 0.5) {
        println!("note: this machine is busy with something else; read ratios, not rates");
    }
    let mut bench = Bench {
        registry: link_plugins!(weighbridge_candle, weighbridge_llama_cpp)?,
        models: args.models,
        peers,
        only_model: args.model,
        n_threads,
        sizes: if args.quick { Sizes::quick() } else { Sizes::full(args.rounds) },
        draw: Draw::new(),
        report: Report::new(args.out, about),
    };
    // In this order: the first sees a process that holds nothing else.
    for section in Section::value_variants() {
        if args.only.is_empty() || args.only.contains(section) {
            bench.run(*section)?;
        }
    }
    bench.report.finish();
    Ok(())
}
