//! `multifd qemu-options`: what a QEMU has to be started with to map a snapshot.

use crate::failure::Failure;
use crate::monitor_args;
use crate::report;
use multifd_qemu::instant::QemuOptions;
use serde::Serialize;

#[derive(Serialize)]
struct Options {
    ok: bool,
    machine: String,
    arguments: Vec<String>,
}

pub(crate) fn run(args: &monitor_args::QemuOptions) -> Result<(), Failure> {
    let file = args.image.lasting()?;
    let options = QemuOptions::of(&file)?;
    let mut arguments = Vec::new();
    for argument in options.arguments() {
        let text = argument.into_string().map_err(|path| {
            let path = path.to_string_lossy();
            Failure::Other(format!("{path:?} is not UTF-8: give the file another name"))
        })?;
        if text.chars().any(char::is_whitespace) && !args.show.json {
            return Err(Failure::Other(format!(
                "{text:?} has a space in it, at which a shell would cut it: give the file another name, or use --json"
            )));
        }
        arguments.push(text);
    }
    let result = Options {
        ok: true,
        machine: options.machine,
        arguments,
    };
    report::print(args.show.json, &result, &result.arguments.join(" "))
}
