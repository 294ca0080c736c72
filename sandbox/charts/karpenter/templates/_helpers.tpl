{{- define "karpenter.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "karpenter.fullname" -}}
{{- $name := include "karpenter.name" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "karpenter.selectorLabels" -}}
app.kubernetes.io/name: {{ include "karpenter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "karpenter.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "karpenter.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.additionalLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Metadata that all objects have; the namespace only for those that live in one. */}}
{{- define "karpenter.metadata" -}}
{{- if .namespaced -}}
namespace: {{ .root.Release.Namespace }}
{{ end -}}
labels:
  {{- include "karpenter.labels" .root | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.additionalAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "karpenter.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "karpenter.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{- define "karpenter.image" -}}
{{- $image := .Values.controller.image -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{/* Terms that name no pods mean the chart's own: its selector is added. */}}
{{- define "karpenter.affinity" -}}
{{- $affinity := deepCopy .Values.affinity -}}
{{- $own := dict "matchLabels" (include "karpenter.selectorLabels" . | fromYaml) -}}
{{- range $kind := list "podAntiAffinity" "podAffinity" -}}
{{- range $term := (index $affinity $kind | default dict).requiredDuringSchedulingIgnoredDuringExecution -}}
{{- if not $term.labelSelector -}}{{- $_ := set $term "labelSelector" $own -}}{{- end -}}
{{- end -}}
{{- end -}}
{{ toYaml $affinity }}
{{- end -}}

{{- define "karpenter.topologySpread" -}}
{{- $own := dict "matchLabels" (include "karpenter.selectorLabels" . | fromYaml) -}}
{{- $constraints := list -}}
{{- range $constraint := .Values.topologySpreadConstraints -}}
{{- $constraints = append $constraints (merge (deepCopy $constraint) (dict "labelSelector" $own)) -}}
{{- end -}}
{{ toYaml $constraints }}
{{- end -}}
