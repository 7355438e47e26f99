//! Which calls are made when.
//!
//! Models that share this machine take turns, because each would distort the other's latency.
//! Every network host has a lane of its own, and lanes go on side by side.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;

use futures_util::future::{join_all, select};
use futures_util::stream::{self, StreamExt};
use tokio::sync::Notify;
use weighbridge_core::{Outcome, OutcomeGroup, Placement, Prompt, Result};

use crate::plan::{Plan, max_cost_usd};
use crate::record::ObservationRecord;
use crate::runlog::{self, Digest, OutcomeRecord, RunLogWriter, RunState};

use super::calls::{Call, make};
use super::{CallId, Observer, RunEvent, RunResult, key_of};

/// After so many infrastructure failures in a row, with every attempt used up, a candidate's
/// remaining calls are not made.
const GIVE_UP_AFTER: u32 = 5;

/// The outcome that stands for a call: the final one, or the last when the attempts are used up.
pub(super) fn settled<'a>(
    state: &'a RunState,
    key: &Digest,
    max_attempts: u32,
) -> Option<&'a OutcomeRecord> {
    if let Some(outcome) = state.final_outcome(key) {
        return Some(outcome);
    }
    let call = state.call(key)?;
    let ended: Vec<_> = call.attempts.iter().filter_map(|a| a.outcome.as_ref()).collect();
    let (_, last) = ended.last()?;
    (ended.len() >= max_attempts as usize).then_some(last)
}

/// What all lanes share.
pub(super) struct Shared<'a> {
    pub(super) plan: &'a Plan,
    pub(super) hash: &'a Digest,
    pub(super) writer: &'a RunLogWriter,
    pub(super) state: &'a RunState,
    pub(super) observer: &'a dyn Observer,
    result: RefCell<RunResult>,
    reserved_usd: Cell<f64>,
    booked: Notify,
}

impl Shared<'_> {
    fn stop(&self, arm_idx: usize, why: &str) {
        let name = &self.plan.arms[arm_idx].candidate.name;
        let mut result = self.result.borrow_mut();
        if !result.stopped.iter().any(|(stopped, _)| stopped == name) {
            result.stopped.push((name.clone(), why.to_owned()));
            self.observer.event(RunEvent::ArmStopped { name, why });
        }
    }

    fn is_stopped(&self, arm_idx: usize) -> bool {
        let name = &self.plan.arms[arm_idx].candidate.name;
        self.result.borrow().stopped.iter().any(|(stopped, _)| stopped == name)
    }

    /// Sets money aside for a call, or says that the cap would be exceeded. While only the calls
    /// on their way stand between this one and the cap, it waits for what they really cost.
    pub(super) async fn reserve(&self, usd: f64) -> bool {
        loop {
            let cap = self.plan.suite.run.spend_cap_usd;
            let spent = {
                let result = self.result.borrow();
                result.spent_usd + result.maybe_spent_usd
            };
            if spent + usd > cap {
                return false;
            }
            if spent + self.reserved_usd.get() + usd <= cap {
                self.reserved_usd.set(self.reserved_usd.get() + usd);
                return true;
            }
            self.booked.notified().await;
        }
    }

    /// Books what a call really cost; unknown cost counts as all that was set aside.
    pub(super) fn book(&self, reserved_usd: f64, cost_usd: Option<f64>) {
        self.reserved_usd.set((self.reserved_usd.get() - reserved_usd).max(0.0));
        let mut result = self.result.borrow_mut();
        match cost_usd {
            Some(cost) => result.spent_usd += cost,
            None => result.maybe_spent_usd += reserved_usd,
        }
        self.booked.notify_waiters();
    }
}

pub(super) async fn run(
    plan: &Plan,
    hash: &Digest,
    writer: &RunLogWriter,
    state: &RunState,
    resend: bool,
    result: RunResult,
    observer: &dyn Observer,
) -> Result<RunResult> {
    let shared = Shared {
        plan,
        hash,
        writer,
        state,
        observer,
        result: RefCell::new(result),
        reserved_usd: Cell::new(0.0),
        booked: Notify::new(),
    };
    let mut lanes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (arm_idx, arm) in plan.arms.iter().enumerate() {
        let lane = match &arm.card.placement {
            Placement::Network { host } => host.clone(),
            _ => String::new(),
        };
        lanes.entry(lane).or_default().push(arm_idx);
    }
    let shared_ref = &shared;
    let lanes = lanes.into_values().map(|arms| async move {
        for arm_idx in arms {
            run_arm(shared_ref, arm_idx, resend).await?;
        }
        Ok::<(), weighbridge_core::Error>(())
    });
    for lane in join_all(lanes).await {
        lane?;
    }
    Ok(shared.result.into_inner())
}

async fn run_arm(shared: &Shared<'_>, arm_idx: usize, resend: bool) -> Result<()> {
    let plan = shared.plan;
    let arm = &plan.arms[arm_idx];
    let name = arm.candidate.name.as_str();
    let mut pending = Vec::new();
    let mut n_total = 0;
    for row_idx in 0..plan.dataset.rows.len() {
        for repeat in 0..plan.suite.run.repeats {
            let id = CallId { arm_idx, row_idx, repeat };
            n_total += 1;
            if plan.dataset.rows[row_idx].is_sensitive && !arm.is_local() {
                let record = ObservationRecord::without_call(
                    Outcome::Withheld,
                    "the sample is sensitive and this model does not run on this machine",
                );
                shared.result.borrow_mut().observations.insert(id, record);
                continue;
            }
            if !shared.result.borrow().observations.contains_key(&id) {
                pending.push(id);
            }
        }
    }
    shared.observer.event(RunEvent::ArmStarted { name, n_done: n_total - pending.len(), n_total });
    if !arm.card.placement.is_remote() {
        longest_first(shared, arm_idx, &mut pending);
    }
    let n_failed_in_row = Cell::new(0_u32);
    let mut calls = stream::iter(pending)
        .map(|id| one_call(shared, id, resend, &n_failed_in_row))
        .buffer_unordered(arm.concurrency as usize);
    while let Some(ended) = calls.next().await {
        ended?;
    }
    shared.observer.event(RunEvent::ArmEnded { name });
    Ok(())
}

/// Long prompts first: memory runs out at once or not at all, and the end is not one long call.
fn longest_first(shared: &Shared<'_>, arm_idx: usize, pending: &mut [CallId]) {
    let arm = &shared.plan.arms[arm_idx];
    pending.sort_by_cached_key(|id| {
        let length = match arm.request(&shared.plan.dataset.rows[id.row_idx]).map(|r| r.prompt) {
            Ok(Prompt::Chat(messages)) => messages.iter().map(|m| m.text().len()).sum(),
            _ => 0_usize,
        };
        (std::cmp::Reverse(length), id.row_idx, id.repeat)
    });
}

async fn one_call(
    shared: &Shared<'_>,
    id: CallId,
    resend: bool,
    n_failed_in_row: &Cell<u32>,
) -> Result<()> {
    let plan = shared.plan;
    let arm = &plan.arms[id.arm_idx];
    if shared.is_stopped(id.arm_idx) {
        return Ok(());
    }
    let key = key_of(plan, shared.hash, id);
    let known = shared.state.call(&key);
    let is_open = known
        .and_then(|c| c.attempts.last())
        .is_some_and(|a| a.outcome.is_none() && a.intent.placement == runlog::Placement::Remote);
    if is_open && !resend {
        let record = ObservationRecord::without_call(
            Outcome::UnknownOutcome,
            "the call was begun and its end was not seen; it may have been billed",
        );
        let mut result = shared.result.borrow_mut();
        result.n_unknown += 1;
        result.observations.insert(id, record);
        return Ok(());
    }
    let request = arm.request(&plan.dataset.rows[id.row_idx])?;
    let call = Call {
        id,
        key,
        max_cost_usd: max_cost_usd(arm, &request),
        request,
        first_attempt: known.map_or(1, runlog::CallState::next_attempt),
        n_ended: known.map_or(0, |c| c.attempts.iter().filter(|a| a.outcome.is_some()).count())
            as u32,
    };
    let ended = match make(shared, call).await? {
        Made::Ended(record) => record,
        Made::NotMade(why) => {
            shared.stop(id.arm_idx, &why);
            return Ok(());
        }
    };
    let outcome = ended.outcome;
    let message = ended.error.as_ref().map(|e| e.message.clone()).unwrap_or_default();
    shared.result.borrow_mut().observations.insert(id, *ended);
    shared.observer.event(RunEvent::CallEnded { name: &arm.candidate.name, outcome });
    match outcome.group() {
        OutcomeGroup::Infrastructure | OutcomeGroup::Local => {
            n_failed_in_row.set(n_failed_in_row.get() + 1);
            if n_failed_in_row.get() == GIVE_UP_AFTER {
                shared.stop(
                    id.arm_idx,
                    &format!(
                        "{GIVE_UP_AFTER} calls in a row failed, the last with: {message}. Mend \
                         that and continue with --resume"
                    ),
                );
            }
        }
        _ => n_failed_in_row.set(0),
    }
    match outcome {
        Outcome::Auth | Outcome::Quota => shared.stop(
            id.arm_idx,
            &format!("{message}. No further call was made; mend that and continue with --resume"),
        ),
        _ => {}
    }
    Ok(())
}

/// What came of trying to make a call.
pub(super) enum Made {
    /// It ended, well or not.
    Ended(Box<ObservationRecord>),
    /// It was not made, and neither will the candidate's others be.
    NotMade(String),
}

/// Waits, or less if the future ends first.
pub(super) async fn with_deadline<T>(
    future: impl Future<Output = T>,
    deadline: std::time::Duration,
) -> Option<T> {
    let future = pin!(future);
    let timer = pin!(tokio::time::sleep(deadline));
    match select(future, timer).await {
        futures_util::future::Either::Left((value, _)) => Some(value),
        futures_util::future::Either::Right(_) => None,
    }
}
