//! What a caller is told while a QEMU is worked with.

use std::sync::Arc;

/// Called with a sentence for people.
pub type Note = Arc<dyn Fn(&str) + Send + Sync>;

/// What a caller may be told while a QEMU is worked with.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Hooks {
    /// Called with sentences for people, about things that are not errors.
    pub note: Option<Note>,
    /// Called with `true` before QEMU's settings are changed, and with `false` when they are as
    /// they were found again: the caller should not end the process in between.
    pub changed: Option<Arc<dyn Fn(bool) + Send + Sync>>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}

impl Hooks {
    /// Sets [`field@Hooks::note`].
    #[must_use]
    pub fn on_note(mut self, note: Note) -> Self {
        self.note = Some(note);
        self
    }

    /// Sets [`field@Hooks::changed`].
    #[must_use]
    pub fn on_changed(mut self, changed: Arc<dyn Fn(bool) + Send + Sync>) -> Self {
        self.changed = Some(changed);
        self
    }

    pub(super) fn note(&self, text: &str) {
        if let Some(note) = &self.note {
            note(text);
        }
    }

    pub(super) fn changed(&self, changed: bool) {
        if let Some(told) = &self.changed {
            told(changed);
        }
    }
}
