//! `cargo xtask test`.

use crate::full::{Judges, Record};
use crate::native::Tools;
use crate::shell::{self, answers, cargo};

pub(crate) fn run(full: bool) -> Result<u8, String> {
    let tools = Tools::provide()?;
    let cargo = || {
        let mut cargo = cargo();
        tools.apply(&mut cargo);
        cargo
    };
    let has_nextest = answers(cargo().args(["nextest", "--version"]));
    if full && !has_nextest {
        return Err(
            "--full needs cargo-nextest, which ends what hangs and tells how long each test \
                    took: cargo install cargo-nextest --locked"
                .to_owned(),
        );
    }
    // First, for what is missing on this machine is then missed before the long builds.
    let judges = full.then(Judges::provide).transpose()?;
    let record = judges.as_ref().map(Record::begin).transpose()?;
    // The end-to-end tests run the programs. Built with the features of the tests, so that nothing
    // is compiled twice.
    shell::run(cargo().args(["build", "--locked", "--workspace"]))?;
    let mut tests = cargo();
    if has_nextest {
        tests.args(["nextest", "run", "--locked", "--workspace", "--no-fail-fast"]);
    } else {
        tests.args([
            "test",
            "--locked",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
        ]);
    }
    if let Some(judges) = &judges {
        judges.apply(&mut tests);
    }
    let tested = shell::run(&mut tests);
    let documented = shell::run(cargo().args(["test", "--locked", "--workspace", "--doc"]));
    if let Some(record) = record {
        record.keep(tested.is_ok(), documented.is_ok())?;
    }
    tested.and(documented).map(|()| 0)
}
