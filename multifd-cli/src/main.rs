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
mod inspect;
mod memory_map;
mod method;
mod migration_setup;
mod network;
mod options;
mod private_socket;
mod progress;
mod qmp;
mod recv;
mod relay;
mod report;
mod restore;
mod send;
mod signals;
mod size;
mod snapshot;
mod snapshot_file;
mod verify;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let (json, outcome) = match Cli::parse().command {
        Command::Recv(args) => (args.show.json, recv::run(&args)),
        Command::Send(args) => (args.show.json, send::run(&args)),
        Command::Relay(args) => (args.show.json, relay::run(&args)),
        Command::Snapshot(args) => (args.show.json, snapshot::run(&args)),
        Command::Restore(args) => (args.show.json, restore::run(&args)),
        Command::Inspect(args) => (args.show.json, inspect::run(&args)),
        Command::Verify(args) => (args.show.json, verify::run(&args)),
        Command::Diff(args) => (args.show.json, diff::run(&args)),
        Command::Extract(args) => (args.show.json, extract::run(&args)),
        Command::Demo(args) => (args.show.json, demo::run(&args)),
        Command::Completions(args) => {
            generate::completions(&args);
            (false, Ok(()))
        }
        Command::Man(args) => (false, generate::man(&args)),
    };
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    if matches!(error, failure::Failure::Reported) {
        return ExitCode::FAILURE;
    }
    report::note(&format!("multifd: {error}"));
    if json {
        println!(
            "{}",
            serde_json::json!({ "ok": false, "error": error.to_string() })
        );
    }
    signals::exit_status().map_or(ExitCode::FAILURE, ExitCode::from)
}
