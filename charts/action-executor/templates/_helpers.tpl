{{/*
The chart's name.
*/}}
{{- define "action-executor.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/*
The name of the release's objects, at most 63 characters, because DNS labels are not longer.
*/}}
{{- define "action-executor.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/*
The chart and its version, as a label.
*/}}
{{- define "action-executor.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/*
The labels of every object.
*/}}
{{- define "action-executor.labels" -}}
helm.sh/chart: {{ include "action-executor.chart" . }}
app.kubernetes.io/name: {{ include "action-executor.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- with .Chart.AppVersion }}
app.kubernetes.io/version: {{ . | quote }}
{{- end }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
The selector labels of the server's pods. The test's pod has another component.
*/}}
{{- define "action-executor.selectorLabels" -}}
app.kubernetes.io/name: {{ include "action-executor.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{/*
The labels of the server's pods.
*/}}
{{- define "action-executor.podLabels" -}}
{{ include "action-executor.labels" . }}
app.kubernetes.io/component: server
{{- with .Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
The service account that runs the actions. It is never the namespace's default account, because every pod of the
namespace would get its permissions.
*/}}
{{- define "action-executor.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "action-executor.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is required if serviceAccount.create is false: set it to the account to use." .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/*
The image, by digest if there is one.
*/}}
{{- define "action-executor.image" -}}
{{- $repository := required "image.repository is empty: set it to the image to run." .Values.image.repository }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/*
The namespaces of targets, as a YAML list under "items".
*/}}
{{- define "action-executor.namespaces" -}}
{{- toYaml (dict "items" (.Values.namespaces | default (list .Release.Namespace) | uniq)) }}
{{- end }}

{{/*
The name of the Secret with the keys; empty if there are no keys.
*/}}
{{- define "action-executor.keysSecret" -}}
{{- $keys := .Values.authentication.keys }}
{{- if $keys.existingSecret }}
{{- $keys.existingSecret }}
{{- else if $keys.entries }}
{{- printf "%s-keys" (include "action-executor.fullname" .) }}
{{- end }}
{{- end }}

{{/*
The keys file.
*/}}
{{- define "action-executor.keys" -}}
{{- toYaml (dict "version" 1 "keys" .Values.authentication.keys.entries) }}
{{- end }}

{{/*
Whether the cluster's RBAC authorizes callers.
*/}}
{{- define "action-executor.usesRbac" -}}
{{- if or .Values.authentication.tokenReview.enabled .Values.tls.clientCaSecret }}yes{{ end }}
{{- end }}

{{/*
The scheme of the server, and the name of its port.
*/}}
{{- define "action-executor.scheme" -}}
{{- ternary "https" "http" .Values.tls.enabled }}
{{- end }}

{{/*
Whether the server authenticates callers.
*/}}
{{- define "action-executor.authenticates" -}}
{{- if or (include "action-executor.usesRbac" .) (include "action-executor.keysSecret" .) }}yes{{ end }}
{{- end }}

{{/*
Checks of combinations of values that the schema cannot express.
*/}}
{{- define "action-executor.validate" -}}
{{- $keys := .Values.authentication.keys }}
{{- if and $keys.entries $keys.existingSecret }}
{{- fail "authentication.keys.entries and authentication.keys.existingSecret are mutually exclusive: list the keys in the values or in your own Secret." }}
{{- end }}
{{- if .Values.server.enabled }}
{{- $_ := include "action-executor.image" . }}
{{- if not (or (include "action-executor.authenticates" .) .Values.authentication.insecureOpen) }}
{{- fail "Authentication is off: set authentication.tokenReview.enabled or authentication.keys. Set authentication.insecureOpen only if another component restricts access." }}
{{- end }}
{{- else if .Values.knative.enabled }}
{{- fail "knative.enabled needs server.enabled: Knative runs only the server." }}
{{- end }}
{{- with .Values.impersonation }}
{{- if and .enabled (not $.Values.server.enabled) }}
{{- fail "impersonation.enabled needs server.enabled: Jobs have no callers." }}
{{- end }}
{{- if and .enabled (not (include "action-executor.authenticates" $)) }}
{{- fail "impersonation.enabled needs authentication: without it there is nobody to impersonate." }}
{{- end }}
{{- if and .constrained .accounts }}
{{- fail "impersonation.constrained and impersonation.accounts are mutually exclusive: constrained impersonation does not cover service accounts." }}
{{- end }}
{{- end }}
{{- if and .Values.tls.enabled (not .Values.tls.secretName) }}
{{- fail "tls.enabled needs tls.secretName: set it to the Secret with the server's certificate and key." }}
{{- end }}
{{- with .Values.notifications }}
{{- if and .sink .urlKey }}
{{- fail "notifications.sink and notifications.urlKey are mutually exclusive: the URL is in the values or in the Secret." }}
{{- end }}
{{- if and .sink (not .secretName) }}
{{- fail "notifications.sink needs notifications.secretName: set it to the Secret with the secret that signs notifications." }}
{{- end }}
{{- if and .urlKey (not .secretName) }}
{{- fail "notifications.urlKey needs notifications.secretName: set it to the Secret with the URL and the secret that signs notifications." }}
{{- end }}
{{- end }}
{{- if and .Values.receipts.keySecret (not .Values.receipts.volume) (not .Values.notifications.sink) (not .Values.notifications.urlKey) }}
{{- fail "receipts.keySecret needs receipts.volume or notifications.sink: a receipt has to go somewhere." }}
{{- end }}
{{- if and .Values.receipts.volume (not .Values.receipts.keySecret) }}
{{- fail "receipts.volume needs receipts.keySecret: set it to the Secret with the key that signs receipts." }}
{{- end }}
{{- if and .Values.tls.clientCaSecret (not .Values.tls.enabled) }}
{{- fail "tls.clientCaSecret needs tls.enabled: clients present certificates only over TLS." }}
{{- end }}
{{- if and .Values.knative.enabled .Values.tls.enabled }}
{{- fail "knative.enabled and tls.enabled are mutually exclusive: Knative terminates TLS itself and sends plain HTTP to its pods." }}
{{- end }}
{{- if .Values.knative.enabled }}
{{- range $what := list "autoscaling" "ingress" "httpRoute" "networkPolicy" }}
{{- if (get $.Values $what).enabled }}
{{- fail (printf "%s.enabled and knative.enabled are mutually exclusive: Knative routes requests and scales its pods itself." $what) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/*
The scanner's checks (checkov) that do not apply to the pods, with reasons.
*/}}
{{- define "action-executor.scannerNotes" -}}
checkov.io/skip1: CKV_K8S_11=there is no CPU limit, because throttling would cause missed deadlines
checkov.io/skip2: CKV_K8S_43=the user sets the digest in image.digest
checkov.io/skip3: CKV_K8S_15=the tag of a version never changes, and image.digest is stronger
checkov.io/skip4: CKV2_K8S_6=networkPolicy.enabled creates one, and the user sets its peers
{{- end }}
