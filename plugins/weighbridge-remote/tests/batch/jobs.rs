//! Handing in, looking up, stopping.

use weighbridge_core::{
    BatchId, BatchLookup, BatchRequest, BatchStatus, ErrorKind, Request, Submission, block_on,
};
use weighbridge_testkit::batch_vendor::{Api, BatchVendor, Habits};
use weighbridge_testkit::player::{Player, json};

use crate::support::{CANARY, WIRES, echo, open, requests, shown, submit};

#[test]
fn a_running_job_is_counted_and_a_cancelled_one_ends() {
    for (remote, api, protocol) in WIRES {
        let habits = Habits { holds: true, ..Habits::default() };
        let vendor = BatchVendor::start(api, habits, echo);
        let model = open(remote, &vendor.url(), protocol);
        assert!(model.capabilities().batch);
        let jobs = model.batch().unwrap();
        let id = submit(jobs, &requests());
        match block_on(jobs.poll(&id)).unwrap() {
            BatchStatus::Running { n_done: 0, n_total: 3 } => {}
            other => panic!("{api:?} {other:?}"),
        }
        block_on(jobs.cancel(&id)).unwrap();
        assert!(matches!(block_on(jobs.poll(&id)).unwrap(), BatchStatus::Ended));
        let answers = block_on(jobs.fetch(&id, &requests())).unwrap();
        for answer in &answers.results {
            let kind = answer.result.as_ref().unwrap_err().kind();
            assert_eq!(kind, ErrorKind::Cancelled, "{api:?}");
        }
    }
}

#[test]
fn a_job_whose_id_was_never_told_is_found_where_vendors_keep_labels() {
    for (remote, api, protocol) in WIRES {
        let habits = Habits { forgets_to_answer: true, ..Habits::default() };
        let vendor = BatchVendor::start(api, habits, echo);
        let model = open(remote, &vendor.url(), protocol);
        let jobs = model.batch().unwrap();
        let error = match block_on(jobs.submit("label-1", &requests())).unwrap() {
            Submission::Unknown(error) => error,
            other => panic!("{other:?}"),
        };
        assert!(!format!("{error:?}").contains(CANARY));
        let found = block_on(jobs.find("label-1")).unwrap();
        let missed = block_on(jobs.find("label-2")).unwrap();
        match api {
            Api::Anthropic => {
                assert_eq!((found, missed), (BatchLookup::Unknown, BatchLookup::Unknown));
            }
            _ => {
                assert_eq!(missed, BatchLookup::Absent);
                let BatchLookup::Found(id) = found else { panic!("{found:?}") };
                let answers = block_on(jobs.fetch(&id, &requests())).unwrap();
                assert_eq!(shown(&answers)[1], "\"zweite Frage ä\": answer 1");
            }
        }
        assert_eq!(vendor.n_jobs(), 1);
    }
}

#[test]
fn a_refused_job_is_no_job_and_a_server_error_may_be_one() {
    for (remote, _, protocol) in WIRES {
        for (status, is_certain) in [
            ("400 Bad Request", true),
            ("401 Unauthorized", true),
            ("429 Too Many Requests", true),
            ("503 Service Unavailable", true),
            ("500 Internal Server Error", false),
            ("502 Bad Gateway", false),
        ] {
            // The file of OpenAI's goes through.
            let player = Player::with(move |request, _| match request.path() {
                "/v1/files" => vec![json("200 OK", r#"{"id":"file-1"}"#)],
                _ => vec![json(status, r#"{"error":{"message":"no"}}"#)],
            });
            let model = open(remote, &player.url(), protocol);
            let submitted = block_on(model.batch().unwrap().submit("l", &requests()));
            match submitted {
                Err(_) => assert!(is_certain, "{status}"),
                Ok(Submission::Unknown(_)) => assert!(!is_certain, "{status}"),
                Ok(other) => panic!("{other:?}"),
            }
        }
    }
    // Nobody listens: nothing was sent.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (remote, _, protocol) in WIRES {
        let model = open(remote, &format!("http://{closed}/v1"), protocol);
        let error = block_on(model.batch().unwrap().submit("l", &requests())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transport);
    }
}

#[test]
fn a_job_that_failed_as_a_whole_says_why() {
    for (wire, code, kind) in [
        (0, "token_limit_exceeded", ErrorKind::RateLimited),
        (0, "billing_hard_limit_reached", ErrorKind::Quota),
        (1, "model_not_found", ErrorKind::NotFound),
        (1, "invalid_json_line", ErrorKind::InvalidRequest),
        (3, "", ErrorKind::InvalidRequest),
    ] {
        let (remote, api, protocol) = WIRES[wire];
        let habits = Habits { fails: Some((code, "because")), ..Habits::default() };
        let vendor = BatchVendor::start(api, habits, echo);
        let model = open(remote, &vendor.url(), protocol);
        let jobs = model.batch().unwrap();
        let id = submit(jobs, &requests());
        match block_on(jobs.poll(&id)).unwrap() {
            BatchStatus::Failed(error) => {
                assert_eq!(error.kind(), kind);
                assert!(error.message().contains("because"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_no_job_is_not_handed_in() {
    let vendor = BatchVendor::start(Api::Anthropic, Habits::default(), echo);
    let model = open(WIRES[2].0, &vendor.url(), None);
    let jobs = model.batch().unwrap();
    let twice = [requests(), requests()].concat();
    for (label, requests) in [("l", Vec::new()), ("l", twice), ("a/b", requests())] {
        let error = block_on(jobs.submit(label, &requests)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
    }
    for id in ["../files", "a/b", "", "a?x=1"] {
        let error = block_on(jobs.poll(&BatchId(id.to_owned()))).unwrap_err();
        assert!(error.message().contains("nothing was asked"), "{error}");
    }
    assert_eq!(vendor.journal().len(), 0);
}

#[test]
fn limits_are_the_documented_ones_and_sizes_are_what_is_sent() {
    let limits = [(50_000, 200_000_000), (50_000, 200_000_000), (100_000, 256_000_000)];
    for (wire, (n, bytes)) in limits.into_iter().enumerate() {
        let model = open(WIRES[wire].0, "http://127.0.0.1:9/v1", WIRES[wire].2);
        let jobs = model.batch().unwrap();
        assert_eq!((jobs.limits().max_requests, jobs.limits().max_bytes), (n, bytes));
    }
    for (remote, api, protocol) in WIRES {
        let vendor = BatchVendor::start(api, Habits::default(), echo);
        let model = open(remote, &vendor.url(), protocol);
        let jobs = model.batch().unwrap();
        submit(jobs, &requests());
        let n_bytes: u64 = requests().iter().map(|r| jobs.size(r).unwrap()).sum();
        let n_sent = vendor.journal()[0].body.len() as u64;
        assert!((n_bytes..n_bytes + 600).contains(&n_sent), "{n_bytes} {n_sent}");
    }
}

#[test]
fn a_request_without_words_has_no_size() {
    let model = open(WIRES[2].0, "http://127.0.0.1:9/v1", None);
    let mut request = Request::user("Hi");
    request.max_tokens = Some(1);
    request.logprobs = Some(1);
    let error = model.batch().unwrap().size(&BatchRequest::new("a", request)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
