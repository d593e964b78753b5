//! The program `multifd`. See `multifd --help`.
#![forbid(unsafe_code)]

mod args;
mod demo;
mod extract;
mod failure;
mod generate;
mod image;
mod method;
mod progress;
mod recv;
mod report;
mod send;
mod signals;
mod size;
mod snapshot_file;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let (json, outcome) = match Cli::parse().command {
        Command::Recv(args) => (args.show.json, recv::run(&args)),
        Command::Send(args) => (args.show.json, send::run(&args)),
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
    eprintln!("multifd: {error}");
    if json {
        println!(
            "{}",
            serde_json::json!({ "ok": false, "error": error.to_string() })
        );
    }
    signals::exit_status().map_or(ExitCode::FAILURE, ExitCode::from)
}
