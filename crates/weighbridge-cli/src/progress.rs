//! Progress bars of a run.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use weighbridge::{Observer, RunEvent};

/// One bar per candidate on a terminal; otherwise one line per candidate.
pub(crate) struct Progress {
    bars: MultiProgress,
    state: Mutex<BTreeMap<String, Line>>,
    is_terminal: bool,
}

struct Line {
    bar: ProgressBar,
    n_failed: u64,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            bars: MultiProgress::new(),
            state: Mutex::default(),
            is_terminal: std::io::stderr().is_terminal(),
        }
    }
}

impl Progress {
    /// A line above the bars.
    fn say(&self, text: String) {
        if self.is_terminal {
            let _ = self.bars.println(text);
        } else {
            eprintln!("{text}");
        }
    }
}

impl Observer for Progress {
    fn event(&self, event: RunEvent<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            RunEvent::ArmStarted { name, n_done, n_total } => {
                let style = ProgressStyle::with_template(
                    "{prefix:16!} {bar:30} {pos:>5}/{len} {elapsed:>4} {msg}",
                )
                .expect("the template is constant");
                let bar = self.bars.add(ProgressBar::new(n_total as u64).with_style(style));
                bar.set_prefix(name.to_owned());
                bar.set_position(n_done as u64);
                if !self.is_terminal {
                    let done =
                        if n_done > 0 { format!(", {n_done} done before") } else { String::new() };
                    eprintln!("{name}: {n_total} calls{done}");
                }
                state.insert(name.to_owned(), Line { bar, n_failed: 0 });
            }
            RunEvent::CallEnded { name, outcome } => {
                if let Some(line) = state.get_mut(name) {
                    line.bar.inc(1);
                    if !outcome.is_scored() {
                        line.n_failed += 1;
                        line.bar.set_message(format!("{} failed", line.n_failed));
                    }
                }
            }
            RunEvent::ArmStopped { name, why } => self.say(format!("{name} stopped: {why}")),
            RunEvent::JobSubmitted { name, job_id, n_calls } => {
                self.say(format!("{name}: batch job {job_id} holds {n_calls} calls"));
            }
            RunEvent::JobPolled { name, job_id, n_done, n_total, pause } => {
                if let Some(line) = state.get(name) {
                    line.bar.set_message(format!(
                        "{job_id}: {n_done} of {n_total}, asked again in {:.0} s",
                        pause.as_secs_f64()
                    ));
                }
            }
            RunEvent::Remark { name, text } => self.say(format!("{name}: {text}")),
            RunEvent::ArmEnded { name } => {
                if let Some(line) = state.get(name) {
                    line.bar.abandon();
                }
            }
            _ => {}
        }
    }
}
