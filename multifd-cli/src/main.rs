//! The program `multifd`. See `multifd --help`.
#![forbid(unsafe_code)]

mod args;
mod demo;
mod diff;
mod elf;
mod encoding;
mod extract;
mod failure;
mod generate;
mod image;
mod image_file;
mod inspect;
mod memory_map;
mod method;
mod monitor;
mod monitor_args;
mod mount;
mod mounted;
mod network;
mod options;
mod output;
mod private_socket;
mod progress;
mod qemu_options;
mod recv;
mod relay;
mod report;
mod restore;
mod run;
mod send;
mod signals;
mod size;
mod snapshot;
mod snapshot_file;
mod store;
mod store_args;
mod threads;
mod verify;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    // As diff(1) does: 1 says that there are differences, 2 that they could not be looked for.
    let trouble = match &command {
        Command::Diff(_) => 2,
        _ => 1,
    };
    let (json, outcome) = match command {
        Command::Recv(args) => (args.show.json, recv::run(&args)),
        Command::Send(args) => (args.show.json, send::run(&args)),
        Command::Relay(args) => (args.show.json, relay::run(&args)),
        Command::Snapshot(args) => (args.show.json, snapshot::run(&args)),
        Command::Restore(args) => (args.show.json, restore::run(&args)),
        Command::QemuOptions(args) => (args.show.json, qemu_options::run(&args)),
        Command::Run(args) => match run::run(&args) {
            Ok(status) => return status,
            Err(error) => (false, Err(error)),
        },
        Command::Inspect(args) => (args.show.json, inspect::run(&args)),
        Command::Verify(args) => (args.show.json, verify::run(&args)),
        Command::Diff(args) => (args.show.json, diff::run(&args)),
        Command::Extract(args) => (args.show.json, extract::run(&args)),
        Command::Store(args) => (store::json(&args), store::run(&args)),
        Command::Mount(args) => (false, mount::run(&args)),
        Command::Demo(args) => (args.show.json, demo::run(&args)),
        Command::Completions(args) => (false, generate::completions(&args)),
        Command::Man(args) => (false, generate::man(&args)),
    };
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    if matches!(error, failure::Failure::Reported) {
        return ExitCode::FAILURE;
    }
    let told = error.told(signals::exit_status().is_some());
    report::note(&format!("multifd: {told}"));
    if json {
        // The exit status says the same.
        let _ = report::print(true, &serde_json::json!({ "ok": false, "error": told }), "");
    }
    ExitCode::from(signals::exit_status().unwrap_or(trouble))
}
