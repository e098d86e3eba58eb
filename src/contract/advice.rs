//! What each error means and what to do about it: for `explain`, and for the page on errors. Texts only, in Markdown.

use crate::contract::error::Code;

/// What an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Request,
    Target,
    Limits,
    Cluster,
    Server,
}

/// When an error comes, and what to do about it.
pub(crate) struct Advice {
    pub subject: Subject,
    /// As the end of a sentence.
    pub when: &'static str,
    pub what_to_do: &'static str,
}

impl Subject {
    pub(crate) const ALL: [Subject; 5] =
        [Subject::Request, Subject::Target, Subject::Limits, Subject::Cluster, Subject::Server];

    /// As a heading.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Subject::Request => "The request",
            Subject::Target => "The target",
            Subject::Limits => "The limits",
            Subject::Cluster => "The cluster",
            Subject::Server => "The caller and the server",
        }
    }
}

impl Code {
    pub(crate) fn advice(self) -> Advice {
        match self {
            Code::InvalidRequest => Advice {
                subject: Subject::Request,
                when: "the syntax, a field, a type, a name or a number is wrong",
                what_to_do: "`field` names it, `hint` says what is accepted",
            },
            Code::PayloadTooLarge => Advice {
                subject: Subject::Request,
                when: "the request is longer than 64 KiB",
                what_to_do: "shorten it",
            },
            Code::HeaderTooLarge => Advice {
                subject: Subject::Request,
                when: "the header is longer than 16 KiB or 64 lines",
                what_to_do: "shorten it",
            },
            Code::Usage => Advice {
                subject: Subject::Request,
                when: "there is no request, or two at once",
                what_to_do: "`env | grep ^ACTION_` lists the variables that count as a request",
            },
            Code::IdReused => Advice {
                subject: Subject::Request,
                when: "the id belongs to a request with other content",
                what_to_do: "use a new id for a new request",
            },
            Code::RequestExpired => Advice {
                subject: Subject::Request,
                when: "`issued_at`, or the event's time, is older than the replay window",
                what_to_do: "check whether it was done; then send a new request",
            },
            Code::PreconditionFailed => Advice {
                subject: Subject::Request,
                when: "the target does not have the `uid` or `resource_version` of the request, was replaced meanwhile, or is not in the state that the action needs, such as a Job that has not finished",
                what_to_do: "read the target again and decide again; `hint` names the parameter that accepts its state, if there is one",
            },
            Code::TargetNotFound => Advice {
                subject: Subject::Target,
                when: "the target does not exist, or is being deleted",
                what_to_do: "the hint has the kubectl command that lists those that exist",
            },
            Code::KindNotInstalled => Advice {
                subject: Subject::Target,
                when: "the cluster does not serve the kind at the version that the action knows",
                what_to_do: "the detail names the CustomResourceDefinition, the hint the release that has it",
            },
            Code::TargetPaused => Advice {
                subject: Subject::Target,
                when: "the Deployment is paused, so no pod would restart; or the Rollout is paused by its spec",
                what_to_do: "resume it first",
            },
            Code::TargetUnmanaged => Advice {
                subject: Subject::Target,
                when: "the pod has no controller and would not be replaced",
                what_to_do: "delete it yourself, or use `allow_unmanaged` where the action has it",
            },
            Code::TargetManaged => Advice {
                subject: Subject::Target,
                when: "another controller decides this and would change it back",
                what_to_do: "change that controller's object; the detail names it",
            },
            Code::NoEffect => Advice {
                subject: Subject::Target,
                when: "the change would have no effect; the detail says why",
                what_to_do: "see the detail",
            },
            Code::NoRevision => Advice {
                subject: Subject::Target,
                when: "there is no earlier revision, or not the requested one",
                what_to_do: "the detail lists the revisions that exist",
            },
            Code::DrainBlocked => Advice {
                subject: Subject::Target,
                when: "pods on the node block the drain",
                what_to_do: "the detail names every pod and reason",
            },
            Code::DisruptionBudget => Advice {
                subject: Subject::Target,
                when: "a PodDisruptionBudget allows no disruption now",
                what_to_do: "wait, or set `wait`; the detail names the disruption budget and the pods that block it",
            },
            Code::Conflict => Advice {
                subject: Subject::Target,
                when: "the target changed during every attempt",
                what_to_do: "resend",
            },
            Code::PolicyDenied => Advice {
                subject: Subject::Limits,
                when: "the policy does not allow it; the detail names the rule",
                what_to_do: "`action-executor policy check policy.yaml request.json` explains it rule by rule",
            },
            Code::RateLimited => Advice {
                subject: Subject::Limits,
                when: "the target's cooldown, the policy's budget for its namespace or for the cluster, or other actions on the same target",
                what_to_do: "resend after `retry_after_seconds`, or change `cooldown_seconds` or `budget` in the [policy](policy.md); `hint` names the request that acted last on the target, if its record is there and the same requester sent it",
            },
            Code::Stopped => Advice {
                subject: Subject::Limits,
                when: "the kill switch is on; the detail has its text",
                what_to_do: "see [Policy](policy.md#the-kill-switch)",
            },
            Code::InProgress => Advice {
                subject: Subject::Limits,
                when: "another attempt at this request is still running",
                what_to_do: "resend after `retry_after_seconds`, or use `--join`",
            },
            Code::Forbidden => Advice {
                subject: Subject::Cluster,
                when: "RBAC does not permit the executor's account",
                what_to_do: "the hint is the rule to add to the Role",
            },
            Code::RejectedByCluster => Advice {
                subject: Subject::Cluster,
                when: "admission, quota or validation refused the change or its record, whatever status a webhook gives to its denial",
                what_to_do: "the detail quotes the cluster, and with it the webhook",
            },
            Code::CredentialsRefused => Advice {
                subject: Subject::Cluster,
                when: "the cluster does not accept the executor's credentials, or a credential plugin failed",
                what_to_do: "the token, certificate or login has expired; the detail has the end of the plugin's standard error",
            },
            Code::Configuration => Advice {
                subject: Subject::Cluster,
                when: "a kubeconfig, a service account or a setting cannot be used",
                what_to_do: "the detail names the file or variable",
            },
            Code::ClusterUnreachable => Advice {
                subject: Subject::Cluster,
                when: "no answer within the deadline, of the API server, a proxy before it or a credential plugin: the detail says which",
                what_to_do: "check the network and the API server; resend",
            },
            Code::ClusterUnavailable => Advice {
                subject: Subject::Cluster,
                when: "the API server is overloaded, or cannot call the admission webhook that the detail names",
                what_to_do: "resend later; repair the webhook",
            },
            Code::OutcomeUnknown => Advice {
                subject: Subject::Cluster,
                when: "a change was sent, its answer is missing, and the cluster does not show what became of it; or the pod to delete is gone, which does not show who deleted it",
                what_to_do: "the detail says what to check, the hint whether to resend; it is never guessed ([what decides](../explanation/exactly-once.md#what-is-promised))",
            },
            Code::Unauthenticated => Advice {
                subject: Subject::Server,
                when: "the server requires authentication, and the caller has not proved its identity",
                what_to_do: "send `Authorization: Bearer` with a key or a token for the server's audience",
            },
            Code::CallerForbidden => Advice {
                subject: Subject::Server,
                when: "the caller is known and not authorized for this",
                what_to_do: "the hint is the rule that the caller's Role, or the key's entry, lacks",
            },
            Code::TooManyRequests => Advice {
                subject: Subject::Server,
                when: "the caller sends too often, or too many credentials from its address were wrong",
                what_to_do: "resend after `retry_after_seconds`",
            },
            Code::MisdirectedRequest => Advice {
                subject: Subject::Server,
                when: "this server does not serve the host in the `Host` header",
                what_to_do: "see [HTTP](http.md#host-and-origin)",
            },
            Code::CrossSite => Advice {
                subject: Subject::Server,
                when: "a page of another site made the request",
                what_to_do: "see [HTTP](http.md#host-and-origin)",
            },
            Code::RouteNotFound => Advice {
                subject: Subject::Server,
                when: "there is no such path",
                what_to_do: "see [HTTP](http.md#routes)",
            },
            Code::RequestNotFound => Advice {
                subject: Subject::Server,
                when: "there is no record of this id in that namespace, or no longer, or the caller may not read it",
                what_to_do: "check the namespace and the id",
            },
            Code::MethodNotAllowed => Advice {
                subject: Subject::Server,
                when: "the path does not have this method",
                what_to_do: "see the header `Allow`",
            },
            Code::NotAcceptable => Advice {
                subject: Subject::Server,
                when: "`Accept` excludes JSON",
                what_to_do: "send `Accept: application/json`, or none",
            },
            Code::UnsupportedMediaType => Advice {
                subject: Subject::Server,
                when: "`Content-Type` is missing or not JSON",
                what_to_do: "send `Content-Type: application/json`",
            },
            Code::RequestTimeout => Advice {
                subject: Subject::Server,
                when: "the body took longer than 10 s",
                what_to_do: "resend",
            },
            Code::Overloaded => Advice {
                subject: Subject::Server,
                when: "too many requests are being served and queued",
                what_to_do: "resend after `retry_after_seconds`",
            },
            Code::ShuttingDown => Advice {
                subject: Subject::Server,
                when: "the process was shutting down before anything was done",
                what_to_do: "resend, to another replica",
            },
            Code::ServerUnhealthy => Advice {
                subject: Subject::Server,
                when: "`healthcheck` found that the server is not healthy",
                what_to_do: "see the detail",
            },
            Code::Internal => Advice {
                subject: Subject::Server,
                when: "a bug",
                what_to_do: "the log has a line at level `ERROR`",
            },
        }
    }
}
