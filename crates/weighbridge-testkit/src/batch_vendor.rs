//! A vendor of batch jobs, in memory: OpenAI's, Anthropic's or Gemini's API, as far as jobs go.
//! Answers come in another order than requests, and go wrong as a test wants it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::player::{Act, Player, Record, Script, answer, json as json_answer};

/// Stands for the vendor's own origin.
const SELF: &str = "http://self";

/// Whose API is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// Files and batches.
    OpenAi,
    /// Message batches.
    Anthropic,
    /// Inlined requests in an operation.
    Gemini,
}

/// What becomes of one request of a job.
#[derive(Clone, Debug)]
pub enum Reply {
    /// An answer with this text, of seven prompt and three generated tokens.
    Text(String),
    /// An error with this status, type or code, and message.
    Error(u16, &'static str, &'static str),
    /// The job expired first.
    Expired,
    /// The job was cancelled first.
    Cancelled,
    /// Nothing about it.
    Missing,
    /// Two answers.
    Twice(String),
    /// An answer whose inside makes no sense.
    Damaged,
}

/// How the vendor behaves beside its replies.
#[derive(Clone, Debug, Default)]
pub struct Habits {
    /// Jobs work until [`BatchVendor::release`].
    pub holds: bool,
    /// The connection breaks after a job was taken, before its id is told.
    pub forgets_to_answer: bool,
    /// Every job fails as a whole with this code and message.
    pub fails: Option<(&'static str, &'static str)>,
    /// Where answers are said to lie, instead of here; Anthropic only.
    pub results_origin: Option<String>,
    /// A line without a request, and one that is not JSON, stand among the answers.
    pub litters: bool,
}

struct Job {
    label: String,
    /// Custom id and body of each request.
    requests: Vec<(String, Value)>,
    is_cancelled: bool,
}

#[derive(Default)]
struct Desk {
    files: Vec<Vec<Value>>,
    jobs: Vec<Job>,
}

type Judge = dyn Fn(&str) -> Reply + Send + Sync;

struct State {
    api: Api,
    habits: Habits,
    /// From the JSON of a request's body.
    judge: Box<Judge>,
    is_released: AtomicBool,
    desk: Mutex<Desk>,
}

/// The vendor. It ends when this is dropped.
pub struct BatchVendor {
    player: Player,
    state: Arc<State>,
}

impl fmt::Debug for BatchVendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchVendor").field("api", &self.state.api).finish_non_exhaustive()
    }
}

impl BatchVendor {
    /// Replies to each request by what `judge` makes of its body's JSON.
    pub fn start(
        api: Api,
        habits: Habits,
        judge: impl Fn(&str) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let is_released = AtomicBool::new(!habits.holds);
        let judge = Box::new(judge);
        let state = Arc::new(State { api, habits, judge, is_released, desk: Mutex::default() });
        let serving = Arc::clone(&state);
        let player = Player::with(move |request, _| serving.script(request));
        Self { player, state }
    }

    /// The base URL of the API.
    pub fn url(&self) -> String {
        self.player.url()
    }

    /// Every request so far.
    pub fn journal(&self) -> Vec<Record> {
        self.player.journal()
    }

    /// How many jobs were handed in.
    pub fn n_jobs(&self) -> usize {
        self.state.desk().jobs.len()
    }

    /// Lets the jobs end.
    pub fn release(&self) {
        self.state.is_released.store(true, Ordering::SeqCst);
    }
}

impl State {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn script(&self, request: &Record) -> Script {
        let method = request.head.split(' ').next().unwrap_or_default();
        let path = request.path();
        let path = path.split('?').next().unwrap_or_default();
        let path = path.strip_prefix("/v1").unwrap_or(path);
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let found = match (self.api, method, &parts[..]) {
            (Api::OpenAi, "POST", ["files"]) => self.take_file(request),
            (Api::OpenAi, "POST", ["batches"]) => self.take_openai_job(&request.body),
            (Api::OpenAi, "GET", ["batches"]) => self.list(),
            (Api::OpenAi, "GET", ["files", file, "content"]) => return self.file(file),
            (Api::OpenAi, _, ["batches", id, rest @ ..])
            | (Api::Anthropic, _, ["messages", "batches", id, rest @ ..]) => match rest {
                ["results"] => return self.lines(id, |_| true),
                ["cancel"] => self.cancel(id),
                _ => self.job(id),
            },
            (Api::Anthropic, "POST", ["messages", "batches"]) => {
                let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
                let requests = items(&body["requests"], "custom_id", "params");
                self.take_job("", requests)
            }
            (Api::Gemini, "POST", ["models", _]) => {
                let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
                let batch = &body["batch"];
                let listed = &batch["inputConfig"]["requests"]["requests"];
                let requests = listed.as_array().into_iter().flatten().filter_map(|item| {
                    let key = item["metadata"]["key"].as_str()?;
                    Some((key.to_owned(), item["request"].clone()))
                });
                let label = batch["displayName"].as_str().unwrap_or_default();
                self.take_job(label, requests.collect())
            }
            (Api::Gemini, "GET", ["batches"]) => self.list(),
            (Api::Gemini, _, ["batches", id]) => match id.strip_suffix(":cancel") {
                Some(id) => self.cancel(id),
                None => self.job(id),
            },
            _ => None,
        };
        match found {
            Some(Value::Null) => vec![Act::Reset],
            Some(body) => {
                let own = format!("http://{}", request.header("host").unwrap_or_default());
                vec![json_answer("200 OK", &body.to_string().replace(SELF, &own))]
            }
            None => vec![json_answer("404 Not Found", r#"{"error":{"message":"no such route"}}"#)],
        }
    }

    /// Takes a file of JSON lines, out of a multipart form.
    fn take_file(&self, request: &Record) -> Option<Value> {
        let boundary = request.header("content-type")?.split_once("boundary=")?.1;
        let part = request.body.split(&format!("--{boundary}")).find(|p| p.contains("filename"))?;
        let lines = part.split_once("\r\n\r\n")?.1.strip_suffix("\r\n")?;
        let lines: Vec<Value> =
            lines.lines().map(serde_json::from_str).collect::<Result<_, _>>().ok()?;
        let mut desk = self.desk();
        desk.files.push(lines);
        Some(json!({"id": format!("file-in{}", desk.files.len() - 1), "object": "file"}))
    }

    fn take_openai_job(&self, body: &str) -> Option<Value> {
        let body: Value = serde_json::from_str(body).ok()?;
        let file =
            body["input_file_id"].as_str()?.strip_prefix("file-in")?.parse::<usize>().ok()?;
        let lines = Value::from(self.desk().files.get(file)?.clone());
        let label = body["metadata"]["weighbridge_job"].as_str().unwrap_or_default();
        self.take_job(label, items(&lines, "custom_id", "body"))
    }

    fn take_job(&self, label: &str, requests: Vec<(String, Value)>) -> Option<Value> {
        let id = {
            let mut desk = self.desk();
            desk.jobs.push(Job { label: label.to_owned(), requests, is_cancelled: false });
            format!("job{}", desk.jobs.len() - 1)
        };
        match self.habits.forgets_to_answer {
            true => Some(Value::Null),
            false => self.job(&id),
        }
    }

    fn list(&self) -> Option<Value> {
        let n_jobs = self.desk().jobs.len();
        let jobs: Vec<_> = (0..n_jobs).rev().filter_map(|n| self.job(&format!("job{n}"))).collect();
        Some(match self.api {
            Api::Gemini => json!({"operations": jobs}),
            _ => json!({"object": "list", "data": jobs, "has_more": false}),
        })
    }

    fn cancel(&self, id: &str) -> Option<Value> {
        let n = id.strip_prefix("job")?.parse::<usize>().ok()?;
        self.desk().jobs.get_mut(n)?.is_cancelled = true;
        match self.api {
            Api::Gemini => Some(json!({})),
            _ => self.job(id),
        }
    }

    /// The job as the vendor shows it.
    fn job(&self, id: &str) -> Option<Value> {
        let desk = self.desk();
        let job = desk.jobs.get(id.strip_prefix("job")?.parse::<usize>().ok()?)?;
        let n = job.requests.len();
        let is_ended = self.is_released.load(Ordering::SeqCst) || job.is_cancelled;
        let replies = || job.requests.iter().map(|(_, body)| self.reply(job, body));
        let has_expired = replies().any(|reply| matches!(reply, Reply::Expired));
        Some(match self.api {
            Api::OpenAi => {
                let status = match (self.habits.fails, is_ended) {
                    (Some(_), _) => "failed",
                    (_, false) => "in_progress",
                    _ if job.is_cancelled => "cancelled",
                    _ if has_expired => "expired",
                    _ => "completed",
                };
                let file = |name: &str| is_ended.then(|| format!("file-{name}-{id}"));
                let errors = self.habits.fails.map(|(code, message)| {
                    json!({"data": [{"code": code, "message": message, "line": 1}]})
                });
                json!({
                    "id": id, "object": "batch", "status": status, "errors": errors,
                    "metadata": {"weighbridge_job": job.label},
                    "output_file_id": file("out"), "error_file_id": file("err"),
                    "request_counts": {"total": n, "completed": 0, "failed": 0},
                })
            }
            Api::Anthropic => {
                let origin = self.habits.results_origin.as_deref().unwrap_or(SELF);
                json!({
                    "id": id, "type": "message_batch",
                    "processing_status": if is_ended { "ended" } else { "in_progress" },
                    "request_counts": {
                        "processing": n, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0,
                    },
                    "results_url": is_ended.then(|| format!("{origin}/v1/messages/batches/{id}/results")),
                })
            }
            Api::Gemini => {
                let state = match (self.habits.fails, is_ended) {
                    (Some(_), _) => "BATCH_STATE_FAILED",
                    (_, false) => "BATCH_STATE_RUNNING",
                    _ if job.is_cancelled => "BATCH_STATE_CANCELLED",
                    _ if has_expired => "BATCH_STATE_EXPIRED",
                    _ => "BATCH_STATE_SUCCEEDED",
                };
                let mut operation = json!({
                    "name": format!("batches/{id}"),
                    "metadata": {
                        "displayName": job.label, "state": state,
                        "batchStats": {"requestCount": n.to_string()},
                    },
                });
                if let Some((_, message)) = self.habits.fails {
                    operation["error"] = json!({"code": 3, "message": message});
                }
                if is_ended && !job.is_cancelled {
                    let answers = self.answers(job, |_| true);
                    operation["done"] = true.into();
                    operation["metadata"]["output"] =
                        json!({"inlinedResponses": {"inlinedResponses": answers}});
                }
                operation
            }
        })
    }

    fn reply(&self, job: &Job, body: &Value) -> Reply {
        match job.is_cancelled {
            true => Reply::Cancelled,
            false => (self.judge)(&body.to_string()),
        }
    }

    /// A file of answers: OpenAI keeps errors in one of their own.
    fn file(&self, name: &str) -> Script {
        let is_failure =
            |reply: &Reply| matches!(reply, Reply::Error(..) | Reply::Expired | Reply::Cancelled);
        match name.strip_prefix("file-out-") {
            Some(id) => self.lines(id, |reply| !is_failure(reply)),
            None => self.lines(name.trim_start_matches("file-err-"), is_failure),
        }
    }

    fn lines(&self, id: &str, keeps: impl Fn(&Reply) -> bool) -> Script {
        let desk = self.desk();
        let n = id.trim_start_matches("job").parse::<usize>().unwrap_or(usize::MAX);
        let Some(job) = desk.jobs.get(n) else { return vec![Act::Reset] };
        let mut lines: Vec<String> =
            self.answers(job, keeps).iter().map(Value::to_string).collect();
        if self.habits.litters {
            lines.insert(0, "{\"custom_id\":\"stranger\"}".to_owned());
            lines.push("not json".to_owned());
        }
        let body = lines.join("\n") + "\n";
        vec![answer("200 OK", "content-type: application/x-jsonl\r\n", body)]
    }

    /// The last request's answer first.
    fn answers(&self, job: &Job, keeps: impl Fn(&Reply) -> bool) -> Vec<Value> {
        let mut answers = Vec::new();
        for (id, body) in job.requests.iter().rev() {
            let reply = self.reply(job, body);
            if !keeps(&reply) {
                continue;
            }
            let n = match reply {
                Reply::Missing => 0,
                Reply::Twice(_) => 2,
                _ => 1,
            };
            let answer = match self.api {
                Api::OpenAi => openai(id, body, &reply),
                Api::Anthropic => anthropic(id, &reply),
                Api::Gemini => gemini(id, &reply),
            };
            answers.extend(std::iter::repeat_n(answer, n));
        }
        answers
    }
}

fn items(list: &Value, id: &str, body: &str) -> Vec<(String, Value)> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(|item| Some((item[id].as_str()?.to_owned(), item[body].clone()))).collect()
}

fn openai(id: &str, request: &Value, reply: &Reply) -> Value {
    let text = match reply {
        Reply::Text(text) | Reply::Twice(text) => text,
        Reply::Error(status, code, message) => {
            let body = json!({"error": {"code": code, "message": message, "type": "error"}});
            let response = json!({"status_code": status, "request_id": "r", "body": body});
            return json!({"custom_id": id, "response": response, "error": null});
        }
        Reply::Damaged => {
            let response = json!({"status_code": 200, "request_id": "r", "body": {"odd": 1}});
            return json!({"custom_id": id, "response": response, "error": null});
        }
        failed => {
            let code = match failed {
                Reply::Expired => "batch_expired",
                _ => "batch_cancelled",
            };
            let error = json!({"code": code, "message": "This request was not executed."});
            return json!({"custom_id": id, "response": null, "error": error});
        }
    };
    let body = match request.get("input") {
        Some(_) => json!({
            "id": "resp_1", "object": "response", "status": "completed", "model": "m-1",
            "output": [{
                "id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": text, "annotations": []}],
            }],
            "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
        }),
        None => json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m-1",
            "choices": [{
                "index": 0, "finish_reason": "stop",
                "message": {"role": "assistant", "content": text},
            }],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }),
    };
    json!({
        "id": "batch_req_1", "custom_id": id, "error": null,
        "response": {"status_code": 200, "request_id": "r", "body": body},
    })
}

fn anthropic(id: &str, reply: &Reply) -> Value {
    let result = match reply {
        Reply::Text(text) | Reply::Twice(text) => json!({
            "type": "succeeded",
            "message": {
                "id": "msg_1", "type": "message", "role": "assistant", "model": "m-1",
                "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn", "stop_sequence": null,
                "usage": {"input_tokens": 7, "output_tokens": 3},
            },
        }),
        Reply::Error(_, kind, message) => json!({
            "type": "errored",
            "error": {"type": "error", "error": {"type": kind, "message": message}},
        }),
        Reply::Damaged => json!({"type": "succeeded", "message": {"odd": 1}}),
        Reply::Expired => json!({"type": "expired"}),
        _ => json!({"type": "canceled"}),
    };
    json!({"custom_id": id, "result": result})
}

fn gemini(id: &str, reply: &Reply) -> Value {
    let mut answer = json!({"metadata": {"key": id}});
    match reply {
        Reply::Text(text) | Reply::Twice(text) => {
            answer["response"] = json!({
                "candidates": [{
                    "content": {"parts": [{"text": text}], "role": "model"},
                    "finishReason": "STOP", "index": 0,
                }],
                "usageMetadata": {
                    "promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 10,
                },
                "modelVersion": "m-1",
            });
        }
        Reply::Error(status, _, message) => {
            answer["error"] = json!({"code": status, "message": message});
        }
        Reply::Damaged => answer["response"] = json!({"odd": 1}),
        Reply::Expired => answer["error"] = json!({"code": 4, "message": "expired"}),
        _ => answer["error"] = json!({"code": 1, "message": "cancelled"}),
    }
    answer
}
