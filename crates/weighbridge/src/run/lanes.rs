//! Which calls are made when.
//!
//! Models that share this machine take turns, because each would distort the other's latency.
//! Every network host has a lane of its own, and lanes go on side by side.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, join_all, select};
use futures_util::stream::{self, StreamExt};
use tokio::sync::Notify;
use weighbridge_core::{ErrorKind, Outcome, OutcomeGroup, Placement, Prompt, Result};

use crate::plan::{Plan, max_cost_usd};
use crate::record::ObservationRecord;
use crate::retry::Retries;
use crate::runlog::{self, Digest, RunLogWriter, RunState};

use super::batch;
use super::calls::{Call, is_final, is_kind, make};
use super::{CallId, Observer, RunEvent, RunResult, key_of};

/// After so many infrastructure failures in a row, with every attempt used up, a candidate's
/// remaining calls are not made.
const GIVE_UP_AFTER: u32 = 5;

/// When a service refuses so many requests as such, and has answered none, neither will it answer
/// the next.
const REFUSED_AFTER: u32 = 3;

/// How a candidate's calls have gone so far.
#[derive(Debug, Default)]
struct Streak {
    n_failed_in_row: Cell<u32>,
    n_refused_in_row: Cell<u32>,
    has_answered: Cell<bool>,
}

/// What all lanes share.
pub(super) struct Shared<'a> {
    pub(super) plan: &'a Plan,
    pub(super) hash: &'a Digest,
    pub(super) writer: &'a RunLogWriter,
    pub(super) state: &'a RunState,
    pub(super) observer: &'a dyn Observer,
    /// Whether a call whose end was never seen is made again.
    pub(super) resend: bool,
    pub(super) result: RefCell<RunResult>,
    pub(super) reserved_usd: Cell<f64>,
    booked: Notify,
    stopped: Notify,
    /// Per arm; arms with the same model at the same place share theirs.
    retries: Vec<Rc<Retries>>,
}

impl Shared<'_> {
    pub(super) fn stop(&self, arm_idx: usize, why: &str) {
        let name = &self.plan.arms[arm_idx].candidate.name;
        let mut result = self.result.borrow_mut();
        if !result.stopped.iter().any(|(stopped, _)| stopped == name) {
            result.stopped.push((name.clone(), why.to_owned()));
            self.observer.event(RunEvent::ArmStopped { name, why });
        }
        drop(result);
        self.stopped.notify_waiters();
    }

    pub(super) fn is_stopped(&self, arm_idx: usize) -> bool {
        let name = &self.plan.arms[arm_idx].candidate.name;
        self.result.borrow().stopped.iter().any(|(stopped, _)| stopped == name)
    }

    pub(super) fn retries(&self, arm_idx: usize) -> &Retries {
        &self.retries[arm_idx]
    }

    /// What the future comes to, unless the arm is stopped first.
    pub(super) async fn unless_stopped<T>(
        &self,
        arm_idx: usize,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        let mut future = pin!(future);
        loop {
            let stopped = pin!(self.stopped.notified());
            if self.is_stopped(arm_idx) {
                return None;
            }
            if let Either::Left((value, _)) = select(future.as_mut(), stopped).await {
                return Some(value);
            }
        }
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
        resend,
        result: RefCell::new(result),
        reserved_usd: Cell::new(0.0),
        booked: Notify::new(),
        stopped: Notify::new(),
        retries: retries(plan),
    };
    let mut lanes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (arm_idx, arm) in plan.arms.iter().enumerate() {
        let lane = match &arm.card.placement {
            // It waits for a vendor's queue, not for a connection or this machine.
            _ if arm.candidate.batch => format!("batch of {}", arm.candidate.name),
            Placement::Network { host } => host.clone(),
            _ => String::new(),
        };
        lanes.entry(lane).or_default().push(arm_idx);
    }
    let shared_ref = &shared;
    let lanes = lanes.into_values().map(|arms| async move {
        for arm_idx in arms {
            run_arm(shared_ref, arm_idx).await?;
        }
        Ok::<(), weighbridge_core::Error>(())
    });
    for lane in join_all(lanes).await {
        lane?;
    }
    Ok(shared.result.into_inner())
}

fn retries(plan: &Plan) -> Vec<Rc<Retries>> {
    let mut shared: BTreeMap<(String, &str), Rc<Retries>> = BTreeMap::new();
    let arms = plan.arms.iter().map(|arm| {
        let place = format!("{:?}", arm.card.placement);
        let retries =
            shared.entry((place, &arm.card.id)).or_insert_with(|| Rc::new(Retries::new()));
        Rc::clone(retries)
    });
    arms.collect()
}

async fn run_arm(shared: &Shared<'_>, arm_idx: usize) -> Result<()> {
    let plan = shared.plan;
    let arm = &plan.arms[arm_idx];
    let name = arm.candidate.name.as_str();
    let is_remote = arm.card.placement.is_remote();
    let streak = Streak::default();
    let mut pending = Vec::new();
    let mut n_total = 0;
    for row_idx in 0..plan.dataset.rows.len() {
        for repeat in 0..plan.suite.run.repeats {
            let id = CallId { arm_idx, row_idx, repeat };
            n_total += 1;
            // What earlier processes left, and what is not to be called at all, is there already.
            match shared.result.borrow().observations.get(&id) {
                Some(record) if record.outcome.is_scored() => streak.has_answered.set(true),
                Some(record)
                    if is_final(record, is_remote) || record.outcome == Outcome::UnknownOutcome => {
                }
                _ => pending.push(id),
            }
        }
    }
    shared.observer.event(RunEvent::ArmStarted { name, n_done: n_total - pending.len(), n_total });
    if !is_remote {
        longest_first(shared, arm_idx, &mut pending);
    }
    if arm.candidate.batch {
        batch::run_arm(shared, arm_idx, pending).await?;
        shared.observer.event(RunEvent::ArmEnded { name });
        return Ok(());
    }
    // What failed before comes last: samples that always fail must not stop the others.
    pending.sort_by_key(|id| shared.result.borrow().observations.contains_key(id));
    let mut pending = pending.into_iter();
    // The first goes alone: a wrong key or an empty account then costs one request, not several.
    if is_remote
        && !streak.has_answered.get()
        && let Some(first) = pending.next()
    {
        one_call(shared, first, &streak).await?;
    }
    let mut calls = stream::iter(pending)
        .map(|id| one_call(shared, id, &streak))
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

async fn one_call(shared: &Shared<'_>, id: CallId, streak: &Streak) -> Result<()> {
    let plan = shared.plan;
    let arm = &plan.arms[id.arm_idx];
    if shared.is_stopped(id.arm_idx) {
        return Ok(());
    }
    let key = key_of(plan, shared.hash, id);
    let known = shared.state.call(&key);
    let request = arm.request(&plan.dataset.rows[id.row_idx])?;
    let call = Call {
        id,
        key,
        max_cost_usd: max_cost_usd(arm, &request),
        request,
        first_attempt: known.map_or(1, runlog::CallState::next_attempt),
    };
    let ended = match make(shared, call).await? {
        Made::Ended(record) => record,
        Made::Stopped(record, why) => {
            shared.stop(id.arm_idx, &why);
            let Some(record) = record else { return Ok(()) };
            record
        }
        Made::Not => return Ok(()),
    };
    let outcome = ended.outcome;
    let message = ended.error.as_ref().map(|e| e.message.clone()).unwrap_or_default();
    let is_missing = is_kind(&ended, ErrorKind::NotFound);
    let is_refused = outcome == Outcome::BadRequest
        && arm.card.placement.is_remote()
        && (is_missing || is_kind(&ended, ErrorKind::InvalidRequest));
    shared.result.borrow_mut().observations.insert(id, *ended);
    shared.observer.event(RunEvent::CallEnded { name: &arm.candidate.name, outcome });
    match outcome.group() {
        OutcomeGroup::Infrastructure | OutcomeGroup::Local => {
            streak.n_failed_in_row.set(streak.n_failed_in_row.get() + 1);
            if streak.n_failed_in_row.get() == GIVE_UP_AFTER {
                shared.stop(
                    id.arm_idx,
                    &format!(
                        "{GIVE_UP_AFTER} calls in a row failed, the last with: {message}. Mend \
                         that and continue with --resume"
                    ),
                );
            }
        }
        _ => streak.n_failed_in_row.set(0),
    }
    if outcome.is_scored() {
        streak.has_answered.set(true);
    }
    streak.n_refused_in_row.set(if is_refused { streak.n_refused_in_row.get() + 1 } else { 0 });
    if streak.n_refused_in_row.get() == REFUSED_AFTER && !streak.has_answered.get() {
        let remedy = match is_missing {
            true => "mend that and continue with --resume",
            false => {
                "the suite asks for what the service does not take: change it, start a new run"
            }
        };
        shared.stop(id.arm_idx, &format!("{message}. No further call was made; {remedy}"));
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
    /// The candidate's other calls are not made, and why. This one may have ended before.
    Stopped(Option<Box<ObservationRecord>>, String),
    /// It was not made, because the candidate was stopped.
    Not,
}
