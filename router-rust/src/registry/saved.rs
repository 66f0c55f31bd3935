//! The last good list of services on disk, for a router that starts while the registry is down.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::registry::entries::{registry_entry, service_from_registry};
use crate::router::table::{Service, Services};
use crate::utils::checks::{Checked, UnusableError};
use crate::utils::files::{read_json, reason_of};
use crate::utils::json::{self, Style, quoted};

/// One file. Faults of the disk are logged and change nothing else.
#[derive(Debug)]
pub struct SavedList {
    pub path: PathBuf,
    last: Mutex<Last>,
}

/// How saving went until now.
#[derive(Debug, Default)]
struct Last {
    /// What is in the file.
    written: Option<Vec<Value>>,
    failed: bool,
}

impl SavedList {
    /// The list of the router at `port`, in `folder`.
    pub fn new(folder: &Path, port: u16) -> Self {
        Self {
            path: folder.join(format!("router_last_services_{port}.json")),
            last: Mutex::default(),
        }
    }

    /// The saved services; none where there is no usable file.
    pub fn load(&self) -> Services {
        if !self.path.exists() {
            return Vec::new();
        }
        self.read().unwrap_or_else(|error| {
            let (file, reason) = (self.path.display(), quoted(&error.0));
            tracing::warn!("saved list ignored file={file} reason={reason}");
            Vec::new()
        })
    }

    fn read(&self) -> Checked<Services> {
        let content = read_json(&self.path)?;
        let Some(entries) = content.get("services").and_then(Value::as_array) else {
            return Err(UnusableError("it has no list of services".to_owned()));
        };
        entries
            .iter()
            .map(|entry| service_from_registry(entry).map(Arc::new))
            .collect()
    }

    /// Replace the file in one step, if the list is not the one already in it.
    pub fn save(&self, services: &[Arc<Service>]) {
        let entries: Vec<_> = services
            .iter()
            .map(|service| registry_entry(service))
            .collect();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.written.as_ref() == Some(&entries) {
            return;
        }
        let saved_at = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, false);
        let content = json!({ "saved_at": saved_at, "services": entries });
        let replaced = self.replace(&json::write(&content, Style::Spaced));
        let failed_before = std::mem::replace(&mut last.failed, replaced.is_err());
        match replaced {
            Ok(()) => last.written = Some(entries),
            // It is tried again after the next answer of the registry, and told once.
            Err(error) if !failed_before => {
                let (file, reason) = (self.path.display(), quoted(&reason_of(&error)));
                tracing::warn!("list not saved file={file} reason={reason}");
            }
            Err(_) => {}
        }
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let draft = self
            .path
            .with_extension(format!("{}.tmp", std::process::id()));
        let replaced = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &self.path));
        if replaced.is_err() {
            // Half a draft would keep room that the disk has not.
            let _ = fs::remove_file(&draft);
        }
        replaced
    }
}
