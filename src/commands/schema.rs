//! JSON Schemas (draft 2020-12), generated from the types that read and write the documents.

use schemars::generate::SchemaSettings;

use crate::{
    actions::request::ActionRequest,
    auth::keys::Keys,
    cli::SchemaOf,
    contract::{error::ActionError, response::ActionResponse},
    http::openapi,
    policy::Policy,
};

/// The schema of a document, as indented JSON.
#[must_use]
pub fn document(of: SchemaOf) -> String {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let schema = match of {
        SchemaOf::Request => generator.into_root_schema_for::<ActionRequest>(),
        SchemaOf::Answer => generator.into_root_schema_for::<ActionResponse>(),
        SchemaOf::Keys => generator.into_root_schema_for::<Keys>(),
        SchemaOf::Policy => generator.into_root_schema_for::<Policy>(),
        SchemaOf::Problem => generator.into_root_schema_for::<ActionError>(),
        SchemaOf::OpenApi => return format!("{:#}", openapi::document()),
    };
    serde_json::to_string_pretty(&schema).unwrap_or_default()
}
