//! `multifd completions` and `multifd man`: made from the command line's own definitions.

use crate::args::{Cli, Completions, Man};
use crate::failure::Failure;
use crate::report;
use clap::CommandFactory;

pub(crate) fn completions(args: &Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "multifd", &mut script);
    report::say(String::from_utf8_lossy(&script).trim_end())
}

pub(crate) fn man(args: &Man) -> Result<(), Failure> {
    clap_mangen::generate_to(Cli::command(), &args.folder).map_err(|cause| Failure::Open {
        path: args.folder.clone(),
        cause,
    })
}
