{{- define "ray-probe" -}}
exec:
  command: [sh, -c, "wget -q -T 4 -O- http://127.0.0.1:52365/api/local_raylet_healthz | grep -q success{{ . }}"]
periodSeconds: 10
timeoutSeconds: 10
{{- end }}

{{- define "ray-env" -}}
{{- if eq .Values.mode "ray" }}
{{- include "settings-env" . }}
- {name: RECAPTURE_SERVE_INGRESSES, value: "{{ .Values.ingresses }}"}
- {name: RECAPTURE_SERVE_RENDERERS, value: "{{ .Values.renderers }}"}
{{- else }}
{{- include "weights-env" . }}
{{- if .Values.weights.pull }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- end }}
{{- end }}

{{- define "ray-cluster" -}}
{{- $labels := include "labels" (dict "root" . "component" .Values.mode) }}
rayVersion: {{ .Values.ray.version }}
authOptions:
  mode: token
  secretName: {{ .Values.ray.tokenSecret }}
{{- if eq .Values.mode "ray" }}
gcsFaultToleranceOptions:
  redisAddress: {{ .Values.redis.address | default (printf "%s-redis:6379" .Release.Name) }}
  redisPassword:
    valueFrom:
      secretKeyRef: {name: {{ .Values.secret }}, key: redis-password}
{{- end }}
headGroupSpec:
  rayStartParams:
    dashboard-host: 0.0.0.0 # behind the token and the network policy
    num-cpus: "0" # the head runs no work
    num-gpus: "0"
  template:
    metadata:
      labels: {{- $labels | nindent 8 }}
    spec:
      {{- include "pod" . | nindent 6 }}
      containers:
        - name: ray-head
          {{- include "container" . | nindent 10 }}
          env:
            {{- include "ray-env" . | trim | nindent 12 }}
          envFrom:
            {{- include "env-from" . | nindent 12 }}
          ports:
            - {containerPort: 6379, name: gcs}
            - {containerPort: 8265, name: dashboard}
            - {containerPort: 8080, name: metrics}
          resources: {{ toJson .Values.resources.head }}
          {{- $gcs := " && wget -q -T 4 -O- http://127.0.0.1:8265/api/gcs_healthz | grep -q success" }}
          readinessProbe:
            {{- include "ray-probe" $gcs | nindent 12 }}
            failureThreshold: 6
          livenessProbe:
            {{- include "ray-probe" $gcs | nindent 12 }}
            initialDelaySeconds: 60
            failureThreshold: 12
          volumeMounts:
            {{- include "mounts" . | nindent 12 }}
      volumes:
        {{- include "volumes" . | nindent 8 }}
workerGroupSpecs:
  - groupName: gpu
    replicas: {{ .Values.renderers }}
    minReplicas: 1
    maxReplicas: {{ max .Values.ray.maxWorkers .Values.renderers }}
    rayStartParams: {}
    template:
      metadata:
        labels: {{- $labels | nindent 10 }}
      spec:
        {{- include "pod" . | nindent 8 }}
        terminationGracePeriodSeconds: 120
        {{- include "gpu-placement" . | nindent 8 }}
        {{- include "pull" . | nindent 8 }}
        containers:
          - name: ray-worker
            {{- include "container" . | nindent 12 }}
            env:
              {{- include "ray-env" . | trim | nindent 14 }}
            envFrom:
              {{- include "env-from" . | nindent 14 }}
            {{- if eq .Values.mode "ray" }}
            ports:
              - {containerPort: 8000, name: serve}
            {{- end }}
            resources:
              {{- include "gpu-resources" . | trim | nindent 14 }}
            {{- $http := ternary " && wget -q -T 4 -O- http://127.0.0.1:8000/-/healthz | grep -q success" "" (eq .Values.mode "ray") }}
            readinessProbe: # of a service: takes requests only once the proxy of this node does
              {{- include "ray-probe" $http | nindent 14 }}
              failureThreshold: 6
            livenessProbe:
              {{- include "ray-probe" "" | nindent 14 }}
              initialDelaySeconds: 60
              failureThreshold: 12
            volumeMounts:
              {{- include "mounts" . | nindent 14 }}
        volumes:
          {{- include "volumes" . | nindent 10 }}
{{- end }}
