//! `multifd store`: the snapshots of a store.

mod changes;
mod files;
mod listing;

use crate::failure::Failure;
use crate::store_args::{StoreAction, StoreCommand};

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
