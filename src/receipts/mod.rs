//! Receipts: a signed line for each real action that ended, which outlives its record in the cluster.
//!
//! [`statement`] says what a receipt says, [`envelope`] signs and opens it, [`key`] reads keys, [`file`] appends lines,
//! [`writer`] bounds the time that this takes. Knows no entry point, makes no calls to the cluster, and does not decide
//! of what a receipt is made.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    config::{ReceiptSettings, reload::read_one},
    contract::error::{ActionError, Code},
    receipts::{key::SigningKey, statement::Statement, writer::Writer},
};

pub(crate) mod envelope;
mod file;
pub(crate) mod key;
pub(crate) mod statement;
mod writer;

/// Signs receipts, and appends them to a file if one is configured.
pub(crate) struct Receipts {
    key: SigningKey,
    file: Option<Arc<PathBuf>>,
    writer: Writer,
}

impl Receipts {
    /// # Errors
    /// [`Code::Configuration`], naming the file that cannot be used.
    pub(crate) fn new(settings: &ReceiptSettings) -> Result<Self, ActionError> {
        let key = key_in(&settings.key)?;
        if let Some(path) = &settings.file {
            file::check(path).map_err(|error| {
                let path = path.display();
                let detail = format!("the file of receipts {path} cannot be written: {error}");
                ActionError::new(Code::Configuration, detail)
                    .with_hint("its directory must exist, and this user must be able to write it")
            })?;
        }
        Ok(Receipts { key, file: settings.file.clone().map(Arc::new), writer: Writer::default() })
    }

    /// The signed line of a statement, without the line's end.
    pub(crate) fn sign(&self, statement: &Statement) -> String {
        // Plain data always serializes.
        envelope::sign(&self.key, &serde_json::to_vec(statement).unwrap_or_default())
    }

    /// Whether receipts are written to a file.
    pub(crate) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Appends a signed line to the file, if there is one. It is on the disk once this returns.
    ///
    /// # Errors
    /// Why it is not, or may not be.
    pub(crate) async fn write(&self, line: String) -> Result<(), String> {
        let Some(path) = self.file.clone() else { return Ok(()) };
        self.writer.run(move || file::append(&path, &line)).await
    }
}

/// The private key in this file.
///
/// # Errors
/// [`Code::Configuration`], naming the file.
pub(crate) fn key_in(path: &Path) -> Result<SigningKey, ActionError> {
    let read = read_one(path, "the key of receipts")?;
    SigningKey::from_pem(&read.text).map_err(|what| {
        let detail = format!("the key of receipts {} {what}", path.display());
        ActionError::new(Code::Configuration, detail)
            .with_hint("make one with `openssl genpkey -algorithm ed25519 -out FILE`")
    })
}
