{{/*
The chart's name.
*/}}
{{- define "action-executor.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/*
The name of the release's objects, cut to 63 characters as DNS asks for.
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
The labels by which the server's pods are chosen. The test's pod has another component.
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
The service account that acts. The namespace's own is never it: everything there would get its rights.
*/}}
{{- define "action-executor.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "action-executor.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name must name the account to use, since serviceAccount.create is false." .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/*
The image, by digest if there is one.
*/}}
{{- define "action-executor.image" -}}
{{- $repository := required "image.repository must not be empty: it names the image to run." .Values.image.repository }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/*
Where it acts, as a YAML list under "items".
*/}}
{{- define "action-executor.namespaces" -}}
{{- toYaml (dict "items" (.Values.namespaces | default (list .Release.Namespace) | uniq)) }}
{{- end }}

{{/*
The Secret with the keys; empty if callers have none.
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
The keys' file.
*/}}
{{- define "action-executor.keys" -}}
{{- toYaml (dict "version" 1 "keys" .Values.authentication.keys.entries) }}
{{- end }}

{{/*
Whether the cluster's RBAC is asked what callers may.
*/}}
{{- define "action-executor.asksRbac" -}}
{{- if or .Values.authentication.tokenReview.enabled .Values.tls.clientCaSecret }}yes{{ end }}
{{- end }}

{{/*
The scheme that is served, which is the name of the port too.
*/}}
{{- define "action-executor.scheme" -}}
{{- ternary "https" "http" .Values.tls.enabled }}
{{- end }}

{{/*
Whether callers are asked who they are.
*/}}
{{- define "action-executor.authenticates" -}}
{{- if or (include "action-executor.asksRbac" .) (include "action-executor.keysSecret" .) }}yes{{ end }}
{{- end }}

{{/*
What cannot be meant, each in a sentence.
*/}}
{{- define "action-executor.validate" -}}
{{- $keys := .Values.authentication.keys }}
{{- if and $keys.entries $keys.existingSecret }}
{{- fail "authentication.keys.entries and authentication.keys.existingSecret exclude each other: name the keys here or in a Secret of your own." }}
{{- end }}
{{- if .Values.server.enabled }}
{{- $_ := include "action-executor.image" . }}
{{- if not (or (include "action-executor.authenticates" .) .Values.authentication.insecureOpen) }}
{{- fail "The server would not ask its callers who they are: set authentication.tokenReview.enabled, or authentication.keys, or authentication.insecureOpen if something else decides who may call." }}
{{- end }}
{{- else if .Values.knative.enabled }}
{{- fail "knative.enabled needs server.enabled: without a server there is nothing for Knative to run." }}
{{- end }}
{{- if and .Values.tls.enabled (not .Values.tls.secretName) }}
{{- fail "tls.enabled needs tls.secretName: the Secret with the server's certificate and key." }}
{{- end }}
{{- if and .Values.tls.clientCaSecret (not .Values.tls.enabled) }}
{{- fail "tls.clientCaSecret needs tls.enabled: without TLS nobody presents a certificate." }}
{{- end }}
{{- if and .Values.knative.enabled .Values.tls.enabled }}
{{- fail "knative.enabled and tls.enabled exclude each other: Knative has TLS of its own, and speaks plain HTTP to its pods." }}
{{- end }}
{{- if .Values.knative.enabled }}
{{- range $what := list "autoscaling" "ingress" "httpRoute" "networkPolicy" }}
{{- if (get $.Values $what).enabled }}
{{- fail (printf "%s.enabled and knative.enabled exclude each other: Knative routes to its pods and scales them itself." $what) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/*
What a scanner (checkov) need not look for in the pods, and why.
*/}}
{{- define "action-executor.scannerNotes" -}}
checkov.io/skip1: CKV_K8S_11=processor time is not limited, because throttling would make deadlines miss
checkov.io/skip2: CKV_K8S_43=the digest is the user's to give, in image.digest
checkov.io/skip3: CKV_K8S_15=the tag of a version is never moved, and image.digest is stronger
checkov.io/skip4: CKV2_K8S_6=networkPolicy.enabled makes one, who may call is the user's to say
{{- end }}
