//! `weighbridge eval`.

use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use weighbridge::compare::{Cause, EvidenceKind};
use weighbridge::report::{self, Report};
use weighbridge::verdict::Action;
use weighbridge::{
    Environment, Error, ErrorKind, Plan, Result, Start, Suite, Unobserved, evaluate, suite,
};

use crate::progress::Progress;
use crate::{EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_NO_REPORT, EXIT_OK, discover, environment};

#[derive(Args)]
pub(crate) struct EvalArgs {
    /// The suite to run
    #[arg(required_unless_present = "data", conflicts_with = "data")]
    suite: Option<PathBuf>,
    /// A .jsonl or .csv file of real inputs: looks for models on this machine and proposes a suite
    #[arg(long)]
    data: Option<PathBuf>,
    /// With --data: the model in use today, as PROVIDER:LOCATION
    #[arg(long, requires = "data")]
    current: Option<String>,
    /// With --data: a model to weigh against it; may be given several times
    #[arg(long, requires = "data")]
    candidate: Vec<String>,
    /// With --data: the prompt, as in "Summarise: {{ text }}"
    #[arg(long, requires = "data")]
    prompt: Option<String>,
    /// With --data: the column that holds the right answer
    #[arg(long, requires = "data")]
    target: Option<String>,
    /// Folder of the run; default runs/NAME-TIME
    #[arg(long)]
    out: Option<PathBuf>,
    /// Continue the run in this folder
    #[arg(long, conflicts_with = "out")]
    resume: Option<PathBuf>,
    /// With --resume: leave calls whose end was never seen missing, since they may have been billed
    #[arg(long, requires = "resume")]
    no_resend: bool,
    /// Show what would be done, and stop
    #[arg(long)]
    plan: bool,
    /// Use only the first so many samples
    #[arg(long)]
    limit: Option<usize>,
    /// Build no client that could reach the network
    #[arg(long)]
    offline: bool,
    /// A value for ${NAME} in the suite's model names, as NAME=VALUE
    #[arg(long = "define", value_name = "NAME=VALUE")]
    defines: Vec<String>,
    /// Exit with 1 if the challenger is worse than the margin allows, 2 if that is not decided
    #[arg(long)]
    gate: bool,
    /// Ask nothing
    #[arg(long, short)]
    yes: bool,
    /// No progress bars
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn run(args: &EvalArgs) -> Result<u8> {
    let environment = environment()?;
    let mut suite = read_suite(args, &environment)?;
    suite.run.offline |= args.offline;
    if args.limit.is_some() {
        suite.data.limit = args.limit;
    }
    for define in &args.defines {
        let (name, value) = define.split_once('=').ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("--define takes NAME=VALUE, not `{define}`"),
            )
        })?;
        suite.defines.insert(name.to_owned(), value.to_owned());
    }
    let name = suite.name.clone();
    let plan = Plan::prepare(suite, &environment)?;
    if let Some(notice) = &plan.suite.notice {
        eprintln!("{notice}");
    }
    eprint!("{}", plan.describe());
    if args.plan {
        return Ok(EXIT_OK);
    }
    if args.data.is_some() && !args.yes && !confirm()? {
        eprintln!("nothing was run");
        return Ok(EXIT_NO_REPORT);
    }
    let (dir, start) = place(args, &name);
    if args.resume.is_none() {
        eprintln!("run       {} (if it is broken off: --resume {})", dir.display(), dir.display());
    }
    let evaluation = if args.quiet {
        evaluate(&plan, &dir, &start, &Unobserved)?
    } else {
        evaluate(&plan, &dir, &start, &Progress::new())?
    };
    show_contacts(&plan);
    let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let width = terminal_width();
    println!();
    print!("{}", report::render_terminal(&evaluation.report, &evaluation.samples, width, color));
    println!("Report: {}", evaluation.dir.join("report.html").display());
    Ok(if args.gate { gate(&evaluation.report) } else { EXIT_OK })
}

fn read_suite(args: &EvalArgs, environment: &Environment) -> Result<Suite> {
    match (&args.suite, &args.data) {
        (Some(path), _) => suite::read(path),
        (None, Some(data)) => {
            let wanted = discover::Wanted {
                data,
                current: args.current.as_deref(),
                candidates: &args.candidate,
                prompt: args.prompt.as_deref(),
                target: args.target.as_deref(),
                offline: args.offline,
            };
            discover::propose(&wanted, environment)
        }
        (None, None) => Err(Error::new(ErrorKind::InvalidInput, "name a suite, or --data FILE")),
    }
}

/// Where the run goes, and whether it begins or goes on.
fn place(args: &EvalArgs, name: &str) -> (PathBuf, Start) {
    let now = jiff::Timestamp::now();
    let created = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    if let Some(dir) = &args.resume {
        return (dir.clone(), Start::Resume { resend: !args.no_resend, created });
    }
    let dir = match &args.out {
        Some(dir) => dir.clone(),
        None => Path::new("runs").join(format!("{name}-{}", now.strftime("%Y%m%dT%H%M%SZ"))),
    };
    (dir, Start::New { created })
}

fn confirm() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "there is nobody to ask whether to run this plan; pass --yes to run it",
        ));
    }
    eprint!("run this plan? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|e| Error::new(ErrorKind::Io, "cannot read the answer").with_source(e))?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// Columns of the terminal; 100 where there is none.
fn terminal_width() -> usize {
    console::Term::stdout().size_checked().map_or(100, |(_, columns)| usize::from(columns))
}

/// Every host that this process exchanged bytes with.
fn show_contacts(plan: &Plan) {
    for line in plan.ledger.lines() {
        let scope = if line.is_loopback { "this machine" } else { "network" };
        eprintln!(
            "contacted {} ({scope}): {} exchanges, {} bytes out, {} bytes in",
            line.host, line.n_exchanges, line.n_bytes_sent, line.n_bytes_received
        );
    }
}

/// The gate holds if the challenger is not worse than the margin allows.
fn gate(report: &Report) -> u8 {
    let Some(challenger) = &report.verdict.challenger else { return EXIT_INCONCLUSIVE };
    if report.verdict.action == Action::NotEnoughEvidence {
        return EXIT_INCONCLUSIVE;
    }
    let comparison = report.comparisons.iter().find(|c| c.candidate == *challenger);
    match comparison.map(|c| (c.evidence.kind, c.evidence.cause)) {
        Some((EvidenceKind::Better | EvidenceKind::NonInferior, _)) => EXIT_OK,
        Some((EvidenceKind::Worse, _)) => EXIT_GATE_FAILED,
        Some((_, Some(Cause::NoPairs))) | None => EXIT_NO_REPORT,
        Some(_) => EXIT_INCONCLUSIVE,
    }
}
