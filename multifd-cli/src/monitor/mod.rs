//! A QEMU by its monitor: what it is, what it is told, and how it gets back what was changed.

pub(crate) mod journal;
pub(crate) mod machine;
pub(crate) mod qmp;
pub(crate) mod run_state;
pub(crate) mod settings;
