//! `multifd store`: the snapshots of a store.

mod changes;
mod files;
mod listing;

use crate::failure::Failure;
use crate::store_args::{StoreAction, StoreCommand};

/// Whether the result is printed as JSON.
pub(crate) fn json(args: &StoreCommand) -> bool {
    match &args.command {
        StoreAction::Ls(args) | StoreAction::Stats(args) => args.show.json,
        StoreAction::Show(args) => args.show.json,
        StoreAction::Rm(args) => args.show.json,
        StoreAction::Gc(args) => args.show.json,
        StoreAction::Copy(args) => args.show.json,
        StoreAction::Import(args) => args.show.json,
        StoreAction::Export(args) => args.show.json,
    }
}

pub(crate) fn run(args: &StoreCommand) -> Result<(), Failure> {
    match &args.command {
        StoreAction::Ls(args) => listing::ls(args),
        StoreAction::Stats(args) => listing::stats(args),
        StoreAction::Show(args) => listing::show(args),
        StoreAction::Rm(args) => changes::rm(args),
        StoreAction::Gc(args) => changes::gc(args),
        StoreAction::Copy(args) => changes::copy(args),
        StoreAction::Import(args) => files::import(args),
        StoreAction::Export(args) => files::export(args),
    }
}
