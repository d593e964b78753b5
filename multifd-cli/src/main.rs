//! The program `multifd`. See `multifd --help`.
#![forbid(unsafe_code)]

mod args;
mod demo;
mod diff;
mod elf;
mod encoding;
mod ending;
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
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    // As diff(1) does: 1 says that there are differences, 2 that they could not be looked for.
    let trouble = match &command {
        Command::Diff(_) => 2,
        _ => 1,
    };
    ending::set(command.json(), trouble);
    let outcome = match command {
        Command::Recv(args) => recv::run(&args),
        Command::Send(args) => send::run(&args),
        Command::Relay(args) => relay::run(&args),
        Command::Snapshot(args) => snapshot::run(&args),
        Command::Restore(args) => restore::run(&args),
        Command::QemuOptions(args) => qemu_options::run(&args),
        Command::Run(args) => match run::run(&args) {
            Ok(status) => return status,
            Err(error) => Err(error),
        },
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Extract(args) => extract::run(&args),
        Command::Store(args) => store::run(&args),
        Command::Mount(args) => mount::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Reported) => ExitCode::FAILURE,
        Err(error) => ExitCode::from(ending::tell(&error.told(signals::exit_status().is_some()))),
    }
}
