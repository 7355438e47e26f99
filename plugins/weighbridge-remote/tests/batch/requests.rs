//! Requests on the wire, against the shapes that the vendors document.

use weighbridge_core::{BatchLookup, block_on};
use weighbridge_testkit::batch_vendor::{BatchVendor, Habits};

use crate::support::{CANARY, WIRES, echo, open, pretty, requests, submit};

#[test]
fn every_route_with_its_body() {
    for (remote, api, protocol) in WIRES {
        let vendor = BatchVendor::start(api, Habits::default(), echo);
        let model = open(remote, &vendor.url(), protocol);
        let jobs = model.batch().unwrap();
        let requests = &requests()[..2];
        let id = submit(jobs, requests);
        block_on(jobs.poll(&id)).unwrap();
        block_on(jobs.fetch(&id, requests)).unwrap();
        assert!(!matches!(block_on(jobs.find("another")), Ok(BatchLookup::Found(_))));
        block_on(jobs.cancel(&id)).unwrap();
        let shown: Vec<String> = vendor
            .journal()
            .iter()
            .map(|request| {
                let line = request.head.lines().next().unwrap().trim_end_matches(" HTTP/1.1");
                let length = line.starts_with("POST").then(|| request.body.len().to_string());
                assert_eq!(request.header("content-length"), length.as_deref(), "{line}");
                let keys = ["authorization", "x-api-key", "x-goog-api-key"];
                let key = keys.iter().filter_map(|name| {
                    let value = request.header(name)?;
                    Some(format!("\n{name}: {}", value.replace(CANARY, "KEY")))
                });
                let others = ["anthropic-version", "accept", "content-type"];
                let others = others
                    .iter()
                    .filter_map(|name| Some(format!("\n{name}: {}", request.header(name)?)));
                let headers: String = key.chain(others).collect();
                format!("{line}{headers}\n\n{}\n", pretty(&request.body))
            })
            .collect();
        let name = protocol.map_or(format!("{api:?}"), |p| format!("{api:?}_{p}"));
        insta::assert_snapshot!(name.to_lowercase(), shown.join("\n"));
    }
}
