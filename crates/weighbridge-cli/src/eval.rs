//! `weighbridge eval`.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use weighbridge::compare::EvidenceKind;
use weighbridge::report::{self, Report};
use weighbridge::verdict::Action;
use weighbridge::{
    Environment, Error, ErrorKind, Plan, Result, Start, Suite, Unobserved, evaluate, suite,
};

use crate::keys::{KeyArgs, tell};
use crate::progress::Progress;
use crate::{
    EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_NO_REPORT, EXIT_OK, discover, environment, hint,
};

/// The name of a proposed suite in the folder of its run.
const KEPT_SUITE: &str = "suite.toml";

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct EvalArgs {
    /// The suite to run: a TOML file that names data, models and how answers are judged
    #[arg(required_unless_present_any = ["data", "resume"], conflicts_with = "data")]
    pub(crate) suite: Option<PathBuf>,
    /// Instead of a suite: a .jsonl or .csv file of real inputs. Looks for models on this machine,
    /// proposes a suite, and asks before it runs
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// With --data: the model in use today, as PROVIDER:LOCATION; default: one found on this
    /// machine, running servers first
    #[arg(long, requires = "data", value_name = "MODEL")]
    current: Option<String>,
    /// With --data: a model that might replace it, as PROVIDER:LOCATION; may be given several times
    #[arg(long, requires = "data", value_name = "MODEL")]
    candidate: Vec<String>,
    /// With --data: the prompt, as in "Summarise: {{ text }}", where `text` is a column
    #[arg(long, requires = "data")]
    prompt: Option<String>,
    /// With --data: the column that holds the right answer
    #[arg(long, requires = "data", value_name = "COLUMN")]
    target: Option<String>,
    /// Folder of the run; default runs/NAME-TIME
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the run in this folder; suite, --define, --limit and --offline as before.
    /// Without a suite: the one kept in the folder, as --data runs do
    #[arg(long, conflicts_with_all = ["out", "data"], value_name = "DIR")]
    resume: Option<PathBuf>,
    /// With --resume: leave calls whose end was never seen missing, since they may have been billed
    #[arg(long, requires = "resume")]
    no_resend: bool,
    /// Show what would be done, and stop
    #[arg(long)]
    plan: bool,
    /// Use only the first so many samples
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Open no connection at all, not even to a server on this machine
    #[arg(long)]
    pub(crate) offline: bool,
    /// A value for ${NAME} in the suite's model names
    #[arg(long = "define", value_name = "NAME=VALUE")]
    pub(crate) defines: Vec<String>,
    /// Let the exit code say whether the challenger holds; see below
    #[arg(long)]
    pub(crate) gate: bool,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    /// How this program was called, for the commands it prints
    #[arg(long, hide = true)]
    pub(crate) called_as: Option<String>,
    /// The whole command that goes on with this run, but for its folder
    #[arg(long, hide = true)]
    pub(crate) resume_hint: Option<String>,
    /// Run without asking whether to
    #[arg(long, short)]
    yes: bool,
    /// No progress bars
    #[arg(long, short)]
    quiet: bool,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  a report was written; with --gate: the challenger is better, or not worse by more than the
     margin
  1  with --gate: the challenger is worse by more than the margin, the whole interval says so
  2  with --gate: neither is proven
  3  there is no report: wrong usage, or no model answered";

pub(crate) fn run(args: &EvalArgs) -> Result<u8> {
    let keys = args.keys.places()?;
    let environment = environment(&keys)?;
    let (mut suite, proposed) = read_suite(args, &environment)?;
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
    let plan = Plan::prepare(suite, &environment);
    tell(&keys);
    let plan = plan?;
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
    let kept = match &proposed {
        Some(text) => Some(keep(text, &dir)?),
        None => None,
    };
    let suite_path = kept.as_deref().or(args.suite.as_deref());
    let resume = hint::resume_command(args, suite_path, &dir);
    if args.resume.is_none() {
        eprintln!("run       {}\nif it is broken off, go on with\n  {resume}", dir.display());
    }
    let evaluation = if args.quiet {
        evaluate(&plan, &dir, &start, &Unobserved)?
    } else {
        evaluate(&plan, &dir, &start, &Progress::new())?
    };
    show_contacts(&plan);
    if evaluation.report.log_root.is_none() {
        eprintln!("the run is not complete; go on with\n  {resume}");
    }
    let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let width = terminal_width();
    let mut text = String::from("\n");
    text += &report::render_terminal(&evaluation.report, &evaluation.samples, width, color);
    let _ = writeln!(text, "Report: {}", evaluation.dir.join("report.html").display());
    crate::print(&text)?;
    Ok(if args.gate { gate(&evaluation.report) } else { EXIT_OK })
}

/// The suite, and its text if it was proposed here.
fn read_suite(args: &EvalArgs, environment: &Environment) -> Result<(Suite, Option<String>)> {
    match (&args.suite, &args.data) {
        (Some(path), _) => Ok((suite::read(path)?, None)),
        (None, Some(data)) => {
            let wanted = discover::Wanted {
                data,
                current: args.current.as_deref(),
                candidates: &args.candidate,
                prompt: args.prompt.as_deref(),
                target: args.target.as_deref(),
                offline: args.offline,
            };
            let proposal = discover::propose(&wanted, environment)?;
            Ok((proposal.suite, Some(proposal.text)))
        }
        (None, None) => {
            // Checked by the parser: one of the three is there.
            let dir = args.resume.as_deref().unwrap_or(Path::new("."));
            let path = dir.join(KEPT_SUITE);
            if !path.is_file() {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "name the suite that the run in {} was started with: eval SUITE --resume \
                         {}",
                        dir.display(),
                        hint::quoted(&dir.display().to_string())
                    ),
                ));
            }
            Ok((suite::read(&path)?, None))
        }
    }
}

/// Keeps a proposed suite in the run's folder, where a resume finds it.
fn keep(text: &str, dir: &Path) -> Result<PathBuf> {
    let path = dir.join(KEPT_SUITE);
    let failed =
        |e| Error::new(ErrorKind::Io, format!("cannot write {}", path.display())).with_source(e);
    if std::fs::read_to_string(&path).is_ok_and(|kept| kept == text) {
        return Ok(path);
    }
    std::fs::create_dir_all(dir).map_err(failed)?;
    match std::fs::File::create_new(&path).and_then(|mut file| file.write_all(text.as_bytes())) {
        Ok(()) => Ok(path),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{} holds another suite already; choose another folder", dir.display()),
        )),
        Err(e) => Err(failed(e)),
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

/// The gate holds if the challenger is not worse than the margin allows, and fails only if the
/// whole interval lies beyond the margin: "worse, by how much is open" is not decided.
fn gate(report: &Report) -> u8 {
    let Some(challenger) = &report.verdict.challenger else { return EXIT_INCONCLUSIVE };
    if report.verdict.action == Action::NotEnoughEvidence {
        return EXIT_INCONCLUSIVE;
    }
    let margin = report.decision.margin_points;
    let comparison = report.comparisons.iter().find(|c| c.candidate == *challenger);
    match comparison.map(|c| (c.evidence.kind, &c.difference)) {
        Some((EvidenceKind::Better | EvidenceKind::NonInferior, _)) => EXIT_OK,
        Some((EvidenceKind::Worse, Some(difference))) if difference.interval.hi < -margin => {
            EXIT_GATE_FAILED
        }
        _ => EXIT_INCONCLUSIVE,
    }
}
