//! `bench-remote`: what the client of remote models costs, in turns with `wrk` and with a bare
//! hyper client, against an nginx that answers everything with the same bytes.
//!
//! Run it by `cargo xtask bench remote`. Method and results are in `docs/benchmarks.md`.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A program talks to its user.

mod bare;
mod nginx;
mod ours;
mod reply;
mod wrk;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;
use weighbridge_bench::report::{Comparison, Peer, Report};
use weighbridge_bench::series::Series;
use weighbridge_bench::{Result, machine};

use crate::bare::Bare;
use crate::nginx::Nginx;
use crate::ours::Ours;
use crate::reply::Reply;
use crate::wrk::Wrk;

/// The program's own, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Our calls per second over wrk's requests per second, at least.
const GOAL_OVER_WRK: f64 = 0.4;
/// What we add to the median latency of a bare client, below this.
const GOAL_ADDED: Duration = Duration::from_micros(60);
/// Calls before anything is measured.
const N_WARM_UP: usize = 2_000;

/// Measures the client of remote models.
#[derive(Debug, Parser)]
struct Args {
    /// File that the results are written to, as JSON.
    #[arg(long)]
    out: PathBuf,
    /// The program nginx.
    #[arg(long)]
    nginx: PathBuf,
    /// The program wrk.
    #[arg(long)]
    wrk: PathBuf,
    /// Rounds; each measures everybody once.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Our calls of each round.
    #[arg(long, default_value_t = 50_000)]
    calls: usize,
    /// Calls at once, ours and wrk's.
    #[arg(long, default_value_t = 64)]
    at_once: usize,
    /// Threads of ours that drive them.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Calls of each round, one after the other, whose latency is taken.
    #[arg(long, default_value_t = 5_000)]
    single_calls: usize,
    /// Only answers of this form.
    #[arg(long, value_enum)]
    only: Option<Reply>,
    /// One short round, to see that everything works.
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.quick {
        (args.rounds, args.calls, args.single_calls) = (1, 5_000, 500);
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-remote: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let about = json!({
        "date": jiff::Timestamp::now().to_string(),
        "command": std::env::args().collect::<Vec<_>>().join(" "),
        "machine": machine::describe(),
        "n_rounds": args.rounds,
        "n_calls": args.calls,
        "n_at_once": args.at_once,
        "n_threads": args.threads,
        "n_single_calls": args.single_calls,
        "quick": args.quick,
        "weighbridge": { "version": env!("CARGO_PKG_VERSION"), "commit": machine::commit() },
        "nginx": nginx::version(&args.nginx)?,
        "wrk": wrk::version(&args.wrk)?,
    });
    println!("{about:#}");
    if machine::load_average().is_some_and(|load| load > 0.5) {
        println!("note: this machine is busy with something else; read ratios, not rates");
    }
    let mut report = Report::new(args.out.clone(), about);
    for reply in Reply::ALL {
        if args.only.is_none_or(|only| only == reply) {
            measure(args, reply, &mut report)?;
        }
    }
    report.finish();
    Ok(())
}

/// All rounds with answers of one form.
fn measure(args: &Args, reply: Reply, report: &mut Report) -> Result<()> {
    let nginx = Nginx::start(&args.nginx, reply)?;
    // What our client sends is what the others send.
    let sent = reply::what_is_sent(|url| Ours::open(url, reply, 1)?.one().map(drop), reply)?;
    let ours = Ours::open(&nginx.url(), reply, args.at_once)?;
    let wrk = Wrk::new(&args.wrk, &sent, args.at_once)?;
    let bare = Bare::connect(nginx.address(), &sent)?;
    ours.all(N_WARM_UP.min(args.calls), args.at_once, args.threads)?;

    let [mut rates, mut wrk_rates, mut cpu, mut p50, mut bare_p50, mut added] =
        [const { Series::empty() }; 6];
    for _ in 0..args.rounds {
        let calls = ours.all(args.calls, args.at_once, args.threads)?;
        rates.push(args.calls as f64 / calls.wall.as_secs_f64());
        cpu.push(calls.cpu.as_secs_f64() * 1e6 / args.calls as f64);
        wrk_rates.push(wrk.rate(&nginx.chat_url(), calls.wall)?);

        let (mut single, mut single_bare) = (Vec::new(), Vec::new());
        for _ in 0..args.single_calls {
            single.push(timed(|| ours.one())?);
            single_bare.push(timed(|| bare.one())?);
        }
        let (single, single_bare) = (median_us(&mut single), median_us(&mut single_bare));
        p50.push(single);
        bare_p50.push(single_bare);
        added.push(single - single_bare);
    }
    let form = reply.as_str();
    report.compare(Comparison {
        what: format!("one-token chat calls, {} at once", args.at_once),
        model: form.to_owned(),
        unit: "calls/s",
        ours: ("weighbridge".to_owned(), rates),
        peers: vec![Peer::new("wrk", wrk_rates, GOAL_OVER_WRK)],
    })?;
    report.find(form, "CPU time of this process per call, in µs", &cpu.to_json(), None)?;
    let is_met = added.median() < GOAL_ADDED.as_secs_f64() * 1e6;
    let values = json!({
        "added": added.to_json(), "ours": p50.to_json(), "bare hyper": bare_p50.to_json(),
    });
    let what = "p50 of single calls over a bare hyper client, in µs; goal: 60 added at most";
    report.find(form, what, &values, Some(is_met))
}

fn timed(call: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    call()?;
    Ok(start.elapsed())
}

/// The median in µs.
fn median_us(times: &mut [Duration]) -> f64 {
    times.iter().map(|time| time.as_secs_f64() * 1e6).collect::<Series>().median()
}
